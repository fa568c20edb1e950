package brocadesim_test

import (
	"crypto/tls"
	"io"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"

	"rerack.dev/rerack/sanzoning/brocadesim"
)

// client is somebody with curl.
type client struct {
	t     *testing.T
	sim   *brocadesim.Switch
	http  *http.Client
	token string
}

func newClient(t *testing.T, sim *brocadesim.Switch) *client {
	c := &client{t: t, sim: sim, http: &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: sim.Roots()}, DisableKeepAlives: true}}}
	return c
}

func (c *client) login() int {
	c.t.Helper()
	resp, _ := c.do("POST", "/rest/login", "", func(r *http.Request) { r.SetBasicAuth("rerack", "pw") })
	c.token = resp.Header.Get("Authorization")
	return resp.StatusCode
}

func (c *client) do(method, path, body string, sign ...func(*http.Request)) (*http.Response, string) {
	c.t.Helper()
	req, err := http.NewRequestWithContext(c.t.Context(), method, c.sim.URL()+path, strings.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	req.Header.Set("Authorization", c.token)
	for _, s := range sign {
		s(req)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return resp, string(raw)
}

const (
	effective = "/rest/running/brocade-zone/effective-configuration"
	defined   = "/rest/running/brocade-zone/defined-configuration"
	lock      = "/rest/running/brocade-zone/fabric-lock"
)

func (c *client) want(status int, method, path, body string) string {
	c.t.Helper()
	resp, got := c.do(method, path, body)
	if resp.StatusCode != status {
		c.t.Fatalf("%s %s %s: %s, want %d: %s", method, path, body, resp.Status, status, got)
	}
	return got
}

func (c *client) checksum() string {
	c.t.Helper()
	m := regexp.MustCompile(`<checksum>([0-9a-f]{32})</checksum>`).FindStringSubmatch(c.want(200, "GET", effective, ""))
	if m == nil {
		c.t.Fatal("no checksum")
	}
	return m[1]
}

func enable(cfg, checksum string) string {
	return `<effective-configuration><cfg-name>` + cfg + `</cfg-name><checksum>` + checksum + `</checksum></effective-configuration>`
}

const (
	newZone = `<defined-configuration><zone><zone-name>z1</zone-name><member-entry><entry-name>10:00:00:00:00:00:00:01</entry-name></member-entry></zone></defined-configuration>`
	join    = `<defined-configuration><cfg><cfg-name>prod</cfg-name><member-zone><zone-name>z1</zone-name></member-zone></cfg></defined-configuration>`
	abort   = `<effective-configuration><cfg-action>4</cfg-action></effective-configuration>`
)

type world struct {
	mu   sync.Mutex
	told []int // zones in force after each commit
}

func (w *world) ZonesChanged(z []brocadesim.Zone) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.told = append(w.told, len(z))
}

func (w *world) Logins() []brocadesim.Login { return nil }

func fabric(t *testing.T) (*brocadesim.Switch, *world) {
	t.Helper()
	w := &world{}
	sim, err := brocadesim.Start(brocadesim.Config{Active: "prod", Password: "pw", Backend: w, MaxSessions: 2})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(sim.Close)
	return sim, w
}

// TestTransaction walks through one transaction, with somebody else looking on.
func TestTransaction(t *testing.T) {
	sim, w := fabric(t)
	a, b := newClient(t, sim), newClient(t, sim)
	if a.login() != 200 || b.login() != 200 {
		t.Fatal("no login")
	}
	if newClient(t, sim).login() != 503 {
		t.Error("a third session on a switch with two")
	}
	sum := a.checksum()
	a.want(400, "PATCH", effective, abort) // nothing is open
	a.want(201, "POST", defined, newZone)
	if got := b.want(200, "GET", lock, ""); !strings.Contains(got, "<lock-principal-domain-id>1<") || !strings.Contains(got, "<client-user-name>rerack<") {
		t.Errorf("lock: %s", got)
	}
	if got := b.want(200, "GET", defined, ""); !strings.Contains(got, "<zone-name>z1<") {
		t.Error("pending edits are not visible")
	}
	b.want(400, "POST", defined, newZone)
	b.want(400, "PATCH", effective, enable("prod", sum))
	if a.checksum() != sum || len(sim.Defined().Zones) != 1 || len(w.told) != 0 {
		t.Error("an edit took effect before its commit")
	}
	a.want(201, "POST", defined, join)
	a.want(400, "PATCH", effective, enable("prod", strings.Repeat("0", 32)))
	a.want(400, "PATCH", effective, enable("nothing", sum))
	a.want(204, "PATCH", effective, enable("prod", sum))
	if a.checksum() == sum || sim.Open() != "" || len(w.told) != 1 || w.told[0] != 2 {
		t.Errorf("after the commit: open %q, told %v", sim.Open(), w.told)
	}
	b.want(400, "PATCH", effective, enable("prod", sum)) // the checksum of before
	a.want(204, "POST", "/rest/logout", "")
	a.want(401, "GET", effective, "")
}

// TestWhatIsRefused: edits that FOS refuses leave nothing pending.
func TestWhatIsRefused(t *testing.T) {
	sim, _ := fabric(t)
	c := newClient(t, sim)
	c.login()
	zone := func(inner string) string {
		return `<defined-configuration><zone>` + inner + `</zone></defined-configuration>`
	}
	for _, r := range [][2]string{
		{"POST", zone(`<zone-name>a b</zone-name><member-entry><entry-name>x</entry-name></member-entry>`)},
		{"POST", zone(`<zone-name>` + strings.Repeat("a", 65) + `</zone-name><member-entry><entry-name>x</entry-name></member-entry>`)},
		{"POST", zone(`<zone-name>empty</zone-name>`)},
		{"POST", zone(`<zone-name>p</zone-name><zone-type-string>user-created-peer-zone</zone-type-string><member-entry><principal-entry-name>50:00:00:00:00:00:00:01</principal-entry-name></member-entry>`)},
		{"POST", zone(`<zone-name>p</zone-name><member-entry><entry-name>x</entry-name><principal-entry-name>y</principal-entry-name></member-entry>`)},
		{"DELETE", zone(`<zone-name>nobody</zone-name>`)},
		{"PATCH", zone(`<zone-name>nobody</zone-name><member-entry><entry-name>x</entry-name></member-entry>`)},
		{"DELETE", join},
		{"POST", `<defined`},
	} {
		c.want(400, r[0], defined, r[1])
	}
	if sim.Open() != "" {
		t.Error("a refused edit opened a transaction")
	}
	// A configuration that names a zone which is not there cannot be enabled.
	sum := c.checksum()
	c.want(201, "POST", defined, join)
	c.want(400, "PATCH", effective, enable("prod", sum))
	c.want(204, "PATCH", effective, abort)
	c.want(404, "GET", "/rest/running/brocade-name-server/fibrechannel-name-server", "")
	c.want(404, "GET", "/rest/running/zoning/effective-configuration", "")
}

func TestRestartForgetsWhatIsPending(t *testing.T) {
	sim, _ := fabric(t)
	c := newClient(t, sim)
	c.login()
	sum := c.checksum()
	c.want(201, "POST", defined, newZone)
	if err := sim.Edit(func(*brocadesim.Defined) {}); err == nil {
		t.Error("edited under somebody's lock")
	}
	if err := sim.Restart(); err != nil {
		t.Fatal(err)
	}
	c.want(401, "GET", effective, "")
	c.login()
	if c.checksum() != sum || sim.Open() != "" {
		t.Error("a restart changed the committed database, or kept the transaction")
	}
}
