package brocade

import (
	"context"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"

	"rerack.dev/rerack/sanzoning/driver"
)

// documented is the leaves of brocade-zone.yang (Broadcom, revision 2021-10-08, FOS 9.1) that a request
// may carry, by path from the resource, with their types and whether they are lists.
var documented = map[string]struct {
	pattern string
	list    bool
}{
	"effective-configuration/cfg-name":                             {`[0-9a-zA-Z_^$-]{1,64}`, false},
	"effective-configuration/checksum":                             {`[0-9a-fA-F]{32}`, false},
	"effective-configuration/cfg-action":                           {`[0-4]`, false},
	"effective-configuration/default-zone-access":                  {`[01]`, false},
	"defined-configuration/cfg/cfg-name":                           {`[0-9a-zA-Z_^$-]{1,64}`, false},
	"defined-configuration/cfg/member-zone/zone-name":              {`[0-9a-zA-Z_^$-]{1,64}`, true},
	"defined-configuration/zone/zone-name":                         {`[0-9a-zA-Z_^$-]{1,64}`, false},
	"defined-configuration/zone/zone-type-string":                  {`zone|user-created-peer-zone|target-created-peer-zone`, false},
	"defined-configuration/zone/member-entry/entry-name":           {`([0-9a-f]{2}:){7}[0-9a-f]{2}|[0-9a-zA-Z_^$-]{1,64}`, true},
	"defined-configuration/zone/member-entry/principal-entry-name": {`([0-9a-f]{2}:){7}[0-9a-f]{2}|[0-9a-zA-Z_^$-]{1,64}`, true},
	"defined-configuration/alias/alias-name":                       {`[0-9a-zA-Z_^$-]{1,64}`, false},
	"defined-configuration/alias/member-entry/alias-entry-name":    {`([0-9a-f]{2}:){7}[0-9a-f]{2}`, true},
}

// resources is where each kind of body may be sent, and how (FOS REST API Reference Manual).
var resources = map[string][]string{
	"POST /rest/login":       nil,
	"POST /rest/logout":      nil,
	"GET " + pathEffective:   nil,
	"GET " + pathDefined:     nil,
	"GET " + pathLock:        nil,
	"GET " + pathNameServer:  nil,
	"PATCH " + pathEffective: {"effective-configuration"},
	"POST " + pathDefined:    {"defined-configuration"},
	"PATCH " + pathDefined:   {"defined-configuration"},
	"DELETE " + pathDefined:  {"defined-configuration"},
}

// TestPayloadsAgainstTheModel records what a change sends and holds it against the documented leaves.
func TestPayloadsAgainstTheModel(t *testing.T) {
	var sent []string
	const checksum = "0123456789abcdef0123456789abcdef"
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		what := r.Method + " " + r.URL.Path
		roots, known := resources[what]
		switch {
		case !known:
			t.Errorf("%s is not documented", what)
		case r.URL.Query().Get("vf-id") != "7" && r.URL.Path != pathLogin && r.URL.Path != pathLogout:
			t.Errorf("%s is for %q", what, r.URL.RawQuery)
		case r.URL.Path != pathLogin && r.Header.Get("Authorization") != "token":
			t.Errorf("%s carries %q", what, r.Header.Get("Authorization"))
		case len(body) == 0 != (roots == nil):
			t.Errorf("%s has the body %q", what, body)
		case len(body) > 0 && r.Header.Get("Content-Type") != "application/yang-data+xml":
			t.Errorf("%s is %s", what, r.Header.Get("Content-Type"))
		case len(body) > 0:
			checkBody(t, what, roots, body)
			sent = append(sent, what+" "+string(body))
		}
		w.Header().Set("Authorization", "token")
		switch r.URL.Path {
		case pathLock:
			fmt.Fprint(w, `<Response><fabric-lock><lock-principal-domain-id>0</lock-principal-domain-id></fabric-lock></Response>`)
		case pathDefined:
			fmt.Fprint(w, `<Response><defined-configuration>`+
				`<cfg><cfg-name>prod</cfg-name><member-zone><zone-name>rr_a_e1</zone-name><zone-name>rr_b_e2</zone-name></member-zone></cfg>`+
				`<zone><zone-name>rr_a_e1</zone-name><member-entry><entry-name>50:00:00:00:00:00:00:01</entry-name></member-entry></zone>`+
				`<zone><zone-name>rr_b_e2</zone-name><member-entry><entry-name>50:00:00:00:00:00:00:01</entry-name></member-entry></zone>`+
				`</defined-configuration></Response>`)
		case pathEffective:
			fmt.Fprint(w, `<Response><effective-configuration><cfg-name>prod</cfg-name><checksum>`+checksum+`</checksum></effective-configuration></Response>`)
		}
	}))
	defer srv.Close()
	f, err := New(Config{URL: srv.URL, VirtualFabric: 7, TLS: srv.Client().Transport.(*http.Transport).TLSClientConfig,
		Login: func(context.Context) (string, string, error) { return "u", "p", nil }})
	if err != nil {
		t.Fatal(err)
	}
	// The server never puts anything in force, so this ends unverified; what was sent is the point.
	_, _ = f.Apply(t.Context(), driver.ZoneChange{Zones: []driver.Zone{
		{Name: "a", Initiators: []string{"10:00:00:00:00:00:00:0a", "10:00:00:00:00:00:00:0b"}, Targets: []string{"50:00:00:00:00:00:00:01"}, Epoch: 2},
		{Name: "b", Initiators: []string{"10:00:00:00:00:00:00:0a"}, Targets: []string{"50:00:00:00:00:00:00:01"}, Epoch: 2},
		{Name: "c", Targets: []string{"50:00:00:00:00:00:00:01"}, Epoch: 2}}})
	want := []string{
		`DELETE ` + pathDefined + ` <defined-configuration><zone><zone-name>rr_b_e2</zone-name></zone></defined-configuration>`,
		`POST ` + pathDefined + ` <defined-configuration>` +
			`<zone><zone-name>rr_a_e2</zone-name><zone-type-string>user-created-peer-zone</zone-type-string><member-entry><entry-name>10:00:00:00:00:00:00:0a</entry-name><entry-name>10:00:00:00:00:00:00:0b</entry-name><principal-entry-name>50:00:00:00:00:00:00:01</principal-entry-name></member-entry></zone>` +
			`<zone><zone-name>rr_b_e2</zone-name><zone-type-string>user-created-peer-zone</zone-type-string><member-entry><entry-name>10:00:00:00:00:00:00:0a</entry-name><principal-entry-name>50:00:00:00:00:00:00:01</principal-entry-name></member-entry></zone>` +
			`<zone><zone-name>rr_c_e2</zone-name><zone-type-string>zone</zone-type-string><member-entry><entry-name>50:00:00:00:00:00:00:01</entry-name></member-entry></zone></defined-configuration>`,
		`POST ` + pathDefined + ` <defined-configuration><cfg><cfg-name>prod</cfg-name><member-zone><zone-name>rr_a_e2</zone-name><zone-name>rr_c_e2</zone-name></member-zone></cfg></defined-configuration>`,
		`DELETE ` + pathDefined + ` <defined-configuration><cfg><cfg-name>prod</cfg-name><member-zone><zone-name>rr_a_e1</zone-name></member-zone></cfg></defined-configuration>`,
		`DELETE ` + pathDefined + ` <defined-configuration><zone><zone-name>rr_a_e1</zone-name></zone></defined-configuration>`,
		`PATCH ` + pathEffective + ` <effective-configuration><cfg-name>prod</cfg-name><checksum>` + checksum + `</checksum></effective-configuration>`,
	}
	if !slices.Equal(sent, want) {
		t.Errorf("sent\n%s\nwant\n%s", strings.Join(sent, "\n"), strings.Join(want, "\n"))
	}
	abort, err := xml.Marshal(effective{CfgAction: actionAbort})
	if err != nil {
		t.Fatal(err)
	}
	checkBody(t, "abort", []string{"effective-configuration"}, abort)
}

func checkBody(t *testing.T, what string, roots []string, body []byte) {
	t.Helper()
	var path []string
	text := ""
	leaves := map[string]int{}
	dec := xml.NewDecoder(strings.NewReader(string(body)))
	for {
		tok, err := dec.Token()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		switch tok := tok.(type) {
		case xml.StartElement:
			if len(path) == 0 && !slices.Contains(roots, tok.Name.Local) {
				t.Errorf("%s carries a %s", what, tok.Name.Local)
			}
			path, text = append(path, tok.Name.Local), ""
			if n := tok.Name.Local; n == "zone" || n == "cfg" {
				clear(leaves)
			}
		case xml.CharData:
			text += string(tok)
		case xml.EndElement:
			name := strings.Join(path, "/")
			leaf, isLeaf := documented[name]
			isInner := slices.ContainsFunc(keys(documented), func(k string) bool { return strings.HasPrefix(k, name+"/") })
			leaves[name]++
			switch {
			case !isLeaf && !isInner:
				t.Errorf("%s: %s is not documented", what, name)
			case isLeaf && !regexp.MustCompile(`^(`+leaf.pattern+`)$`).MatchString(text):
				t.Errorf("%s: %s may not be %q", what, name, text)
			case isLeaf && !leaf.list && leaves[name] > 1:
				t.Errorf("%s: %s is there twice", what, name)
			}
			path, text = path[:len(path)-1], ""
		}
	}
}

func keys[V any](m map[string]V) (out []string) {
	for k := range m {
		out = append(out, k)
	}
	return out
}

func TestNames(t *testing.T) {
	allowed := regexp.MustCompile(`^[a-zA-Z][a-zA-Z0-9_]{0,63}$`)
	seen := map[string]string{}
	for _, name := range []string{"vol-db1", "vol_db1", "vol.db1", "vol-db1-e5", "e5", "-", "A", "a", strings.Repeat("a", 39), strings.Repeat("a", 40),
		strings.Repeat("a", 41), "vol-" + strings.Repeat("x", 200), "ünïcode", "", "a b", "a;b"} {
		for _, epoch := range []uint64{1, 1<<64 - 1} {
			device := ZoneName(name, epoch)
			if !allowed.MatchString(device) {
				t.Errorf("%q at %d is %q", name, epoch, device)
			}
			got, e, ok := ParseZoneName(device)
			if !ok || e != epoch || Key(got) != Key(name) {
				t.Errorf("%q at %d is %q, which reads %q at %d, %t", name, epoch, device, got, e, ok)
			}
			if plainName.MatchString(name) && got != name {
				t.Errorf("%q reads back as %q", name, got)
			}
		}
		if other, taken := seen[Key(name)]; taken {
			t.Errorf("%q and %q share a name", name, other)
		}
		seen[Key(name)] = name
	}
	for _, foreign := range []string{"", "rr_", "rr__e1", "rr_a", "rr_a_e", "rr_a_e01", "rr_a_e-1", "rr_a_e1x", "RR_a_e1", "a_e1", "rr_a_e18446744073709551616"} {
		if _, _, ok := ParseZoneName(foreign); ok {
			t.Errorf("%q counts as ours", foreign)
		}
	}
}

func FuzzNames(f *testing.F) {
	f.Add("vol-db1", "rr_vol_db1_e1")
	f.Add(strings.Repeat("ä", 80), "rr_a_b_h0123456789_e7")
	f.Fuzz(func(t *testing.T, name, device string) {
		d := ZoneName(name, 1<<64-1)
		if got, epoch, ok := ParseZoneName(d); len(d) > maxName || !ok || epoch != 1<<64-1 || Key(got) != Key(name) {
			t.Fatalf("%q is %q, which reads %q, %d, %t", name, d, got, epoch, ok)
		}
		ParseZoneName(device)
	})
}
