package topology_test

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"rerack.dev/rerack/orchestrator/topology"
)

const site = "apiVersion: rerack/v1\nkind: Site\nmetadata: {name: %s}\n"

func loadText(texts ...string) (*topology.Topology, error) {
	files := make([]topology.File, len(texts))
	for i, s := range texts {
		files[i] = topology.File{Name: fmt.Sprintf("f%d.yaml", i), Data: []byte(s)}
	}
	return topology.Load(files)
}

func TestLoadForms(t *testing.T) {
	one := fmt.Sprintf(site, "hall")
	for name, text := range map[string]string{
		"plain":                 one,
		"byte order mark":       "\ufeff" + one,
		"windows line ends":     strings.ReplaceAll(one, "\n", "\r\n"),
		"marker before":         "---\n" + one,
		"markers and empties":   "---\n---\n# nothing\n---\n" + one + "---\n\n...\n---\n",
		"end marker":            one + "...\n",
		"value after marker":    "--- {apiVersion: rerack/v1, kind: Site, metadata: {name: hall}}\n",
		"comment after marker":  "--- # the hall\n" + one,
		"no newline at the end": strings.TrimSuffix(one, "\n"),
		"json":                  `{"apiVersion": "rerack/v1", "kind": "Site", "metadata": {"name": "hall"}, "spec": {}}`,
		"tab in a comment":      "# a\tb\n\t# c\n" + one,
		"comments all over":     "# one\napiVersion: rerack/v1 # two\n# three\nkind: Site\nmetadata:\n  # four\n  name: hall # five\n",
		"quoted":                "\"apiVersion\": 'rerack/v1'\n'kind': \"Site\"\nmetadata: {\"name\": 'hall'}\n",
	} {
		t.Run(name, func(t *testing.T) {
			top, err := loadText(text)
			if err != nil {
				t.Fatal(err)
			}
			if top.Len() != 1 || top.Sites["hall"].Meta.Name != "hall" || top.Sites["hall"].Kind != topology.KindSite {
				t.Fatalf("got %+v", top.Sites)
			}
		})
	}
}

func TestLoadNothing(t *testing.T) {
	for _, text := range []string{"", "\n\n", "# only a comment\n", "---\n---\n", "\ufeff"} {
		top, err := loadText(text)
		if err != nil || top.Len() != 0 {
			t.Errorf("%q: %d objects, %v", text, top.Len(), err)
		}
	}
}

func TestLoadRefuses(t *testing.T) {
	deepFlow := strings.Repeat("{a: ", 100_000)
	for name, c := range map[string]struct{ text, want string }{
		"not utf-8":        {"kind: \xff", "f0.yaml:1:7: the text is not UTF-8 (save the file as UTF-8)"},
		"utf-16":           {"\xff\xfek\x00", "f0.yaml:1:1: the text is not UTF-8 (save the file as UTF-8)"},
		"nul":              {"kind: a\x00b", "f0.yaml:1:8: the control character U+0000 (remove it)"},
		"bidi override":    {"# \u202e\n", "f0.yaml:1:3: the control character U+202E (remove it)"},
		"long run":         {strings.Repeat("<", 1000), "f0.yaml:1:513: more than 512 times '<' in a row"},
		"no value":         {"!!!", ""},
		"lone return":      {"a: b\rc: d", "f0.yaml:1:5: the control character U+000D (remove it)"},
		"tab":              {"a:\n\tb: c", "f0.yaml:2:1: a tab in the indentation (use spaces)"},
		"too large":        {strings.Repeat("#\n", topology.MaxFileBytes/2+1), "f0.yaml: the file has 4194306 bytes, more than 4194304 (split it into several files)"},
		"deep flow":        {deepFlow, "f0.yaml:1:129: nested deeper than 32"},
		"deep list":        {strings.Repeat("- ", 100_000), "f0.yaml:1:65: nested deeper than 32"},
		"billion laughs":   {"a: &a [x]\nb: &b [*a, *a]\n", "f0.yaml:1:4: anchors, aliases and merge keys are refused (write the value out)"},
		"lone alias":       {"*a", "f0.yaml:1:1: anchors, aliases and merge keys are refused (write the value out)"},
		"tag chain":        {strings.Repeat("!a ", 1000), "f0.yaml:1:1: tags are refused (remove !a)"},
		"merge":            {"<<: {a: b}", "f0.yaml:1:1: anchors, aliases and merge keys are refused (write the value out)"},
		"unclosed quote":   {"a: \"b", ""},
		"unclosed list":    {"a: [b", ""},
		"CVE-2022-28948":   {"0: [:!00 \xef", "f0.yaml:1:10: the text is not UTF-8 (save the file as UTF-8)"},
		"CVE-2022-28948 b": {"0: [:!00 x", ""},
		"stray bracket":    {"a: b]\n}", ""},
		"two values":       {"{a: b}\n{c: d}", ""},
		"bad indentation":  {"a:\n    b: c\n  d: e\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			_, err := loadText(c.text)
			var all topology.Errors
			if !errors.As(err, &all) || len(all) == 0 {
				t.Fatalf("the error is %v", err)
			}
			if got := all[0].Error(); c.want != "" && got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
			if took := time.Since(start); took > 5*time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
}

func TestLoadLimits(t *testing.T) {
	_, err := loadText(strings.Repeat("a: b\n---\n", topology.MaxDocuments+1))
	var all topology.Errors
	if !errors.As(err, &all) || len(all) > 1000 {
		t.Errorf("%d errors for many documents", len(all))
	}
	var many strings.Builder
	for i := range topology.MaxDocuments + 1 {
		fmt.Fprintf(&many, "---\n"+site, fmt.Sprintf("s%d", i))
	}
	if _, err = loadText(many.String()); err == nil || !strings.Contains(err.Error(), "more than 20000 documents") {
		t.Errorf("the limit of documents is not held: %v", err)
	}
	var fields strings.Builder
	for i := range 3000 {
		fmt.Fprintf(&fields, "field%d: 1\n", i)
	}
	_, err = loadText(fields.String())
	if !errors.As(err, &all) || len(all) > 1000 || !strings.Contains(err.Error(), "too many errors") {
		t.Errorf("%d errors for many fields", len(all))
	}
}

// TestLoadHostile checks that the time for a large file of a bad form does not grow with its square: 64 KiB of
// what once took minutes take milliseconds.
func TestLoadHostile(t *testing.T) {
	const size = 64 << 10
	ruled := func(unit string) string { return strings.Repeat(unit, 100) + "\n" } // shorter than what is refused outright
	for _, unit := range []string{"a: b\n", "a:\n", "- a\n", "[a, ", "{a: b}, ", "'", "\"\\", "|\n", "a: |\n b\n", "a: >\n\n", "a ", "a\n ", "- - ", "-\n", "? ",
		"!\n", "&\n", "*\n", "%\n", "@\n", "'a' ", "a: 'b\n", "--- a\n", "a: b #c\n", "a: \"b\\\n", "\r\n", "a: [\n", ": ", "\t#\n",
		ruled("<"), "a" + ruled("<"), ruled("<< "), ruled("-"), ruled("."), ruled(" "), ruled("\t"), ruled("\""), ruled("["), ruled("!")} {
		start := time.Now()
		_, err := loadText(strings.Repeat(unit, size/len(unit)))
		if err == nil && strings.Trim(unit, "# \t\r\n") != "" {
			t.Errorf("64 KiB of %.10q load", unit)
		}
		took := time.Since(start)
		t.Logf("%.10q: %v", unit, took)
		if took > 5*time.Second {
			t.Errorf("64 KiB of %.10q took %v", unit, took)
		}
	}
}

// TestLoadFiles checks that a topology may be spread over files, and that errors are sorted by file and line.
func TestLoadFiles(t *testing.T) {
	rack := "apiVersion: rerack/v1\nkind: Rack\nmetadata: {name: r}\nspec: {site: hall}\n"
	if _, err := loadText(rack, fmt.Sprintf(site, "hall")); err != nil {
		t.Fatal(err)
	}
	_, err := loadText(rack, rack, "kind: Nothing\n---\nfoo: bar\n")
	want := `f0.yaml:4:14: Rack r: spec.site: there is no Site "hall"
f1.yaml:3:18: Rack r: metadata.name: is declared twice (first at f0.yaml:3:18)
f2.yaml:1:1: apiVersion: is required (apiVersion: rerack/v1)
f2.yaml:1:7: kind: unknown kind "Nothing" (kinds: Site, Policy, PowerFeed, Rack, HardwareType, Switch, Network, Fabric, Array, Volume, Image, Machine, MachinePool, Workload, Runbook)
f2.yaml:3:1: apiVersion: is required (apiVersion: rerack/v1)
f2.yaml:3:1: foo: unknown field (one of: apiVersion, kind, metadata, spec)
f2.yaml:3:1: kind: is required (e.g. kind: Machine)`
	if err == nil || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
	var one *topology.Error
	if !errors.As(err, &one) || one.Line != 4 || one.Column != 14 || one.Kind != topology.KindRack || one.Name != "r" || one.Path != "spec.site" {
		t.Errorf("the first error is %+v", one)
	}
}

func TestLoadFS(t *testing.T) {
	fsys := fstest.MapFS{
		"dc/a.yaml":         {Data: fmt.Appendf(nil, site, "a")},
		"dc/b/c.yml":        {Data: fmt.Appendf(nil, site, "c")},
		"dc/README.md":      {Data: []byte("not yaml: [")},
		"dc/.hidden.yaml":   {Data: []byte("not yaml: [")},
		"dc/.git/x.yaml":    {Data: []byte("not yaml: [")},
		"other/d.conf":      {Data: fmt.Appendf(nil, site, "d")},
		"empty/nothing.txt": {Data: nil},
	}
	for _, c := range []struct {
		paths []string
		sites int
	}{{[]string{"dc"}, 2}, {nil, 2}, {[]string{"dc/b", "dc/b/c.yml"}, 1}, {[]string{"other/d.conf", "dc"}, 3}} {
		top, err := topology.LoadFS(fsys, c.paths...)
		if err != nil || len(top.Sites) != c.sites {
			t.Errorf("%v: %v, want %d sites", c.paths, err, c.sites)
		}
	}
	for _, paths := range [][]string{{"missing"}, {"empty"}, {"../etc"}} {
		if _, err := topology.LoadFS(fsys, paths...); err == nil {
			t.Errorf("%v loads", paths)
		}
	}
	huge := fstest.MapFS{"x.yaml": {Data: make([]byte, topology.MaxFileBytes+2)}}
	if _, err := topology.LoadFS(huge); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("a huge file: %v", err)
	}
}

// TestValidate checks that a topology built in Go is held to the same rules as text.
func TestValidate(t *testing.T) {
	top := load(t, "story")
	if err := topology.Validate(top); err != nil {
		t.Fatal(err)
	}
	bad := top.Clone()
	m := bad.Machines["a01"]
	m.Spec.NICs[0].MAC, m.Spec.BMC.Protocol, m.Spec.Rack = "zz", "telnet", "rack-z"
	bad.Machines["a01"] = m
	s := bad.Switches["tor-a"]
	s.Spec.Driver = ""
	bad.Switches["tor-b"] = s
	err := topology.Validate(bad)
	want := `Machine a01: spec.bmc.protocol: "telnet" is not allowed (one of: auto, redfish, ipmi, amt, bmclib)
Machine a01: spec.nics[0].mac: "zz" is not a MAC address: want 6 hex octets, e.g. 52:54:00:12:34:56
Machine a01: spec.rack: there is no Rack "rack-z" (did you mean "rack-a"?)`
	if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), `Switch tor-b: metadata.name: is "tor-a" under the key "tor-b"`) {
		t.Errorf("got\n%v\nwant among it\n%s", err, want)
	}
	if err := topology.Validate(top); err != nil || top.Machines["a01"].Spec.NICs[0].MAC == "zz" {
		t.Errorf("the clone shares data with its origin: %v", err)
	}
}

// An address says that the box is an Intel AMT by its scheme.
func TestAMTAddress(t *testing.T) {
	for address, want := range map[string]string{
		"amt://10.0.9.1":       "",
		"amt://10.0.9.1:16993": "",
		"amt://":               "is not of the form amt://host[:port]",
		"amt://u:p@10.0.9.1":   "holds a user name or password",
		"amt://10.0.9.1/wsman": "has more than a host and a port",
	} {
		top := load(t, "story").Clone()
		m := top.Machines["a01"]
		m.Spec.BMC.Address, m.Spec.BMC.Protocol = address, "amt"
		top.Machines["a01"] = m
		if err := topology.Validate(top); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", address, err, want)
		}
	}
}

func FuzzLoad(f *testing.F) {
	base, err := os.ReadFile("testdata/base.yaml")
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range []string{
		string(base), fmt.Sprintf(site, "hall"), "", "---\n...\n", "a: &a [*a, *a]", "a: &a {b: *a}\n<<: *a", "0: [:!00 \xef",
		"? [a]\n: b", "- - - - -", "{{{{{{", "[[[[[[", "a: |\n  b\n  c\n", "a: >-\n b\n\n c", "%YAML 1.2\n---\na", "!!binary aGk=",
		"a: 'b''c'", "\"\\u0000\"", "a:\n\tb", "\ufeffa: b\r\n", "a: 0x1f\nb: 1e400\nc: .inf\nd: 2001-01-01", "<<: [<<: a]", "a: b: c",
		"kind: Machine\nspec: {nics: [{mac: 00}]}", "- a\n- ? b\n", "a: !!map {", "'", "\"", "|", ">", "@", "`", ": :", "?", "-", "#",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		start := time.Now()
		top, err := topology.Load([]topology.File{{Name: "f.yaml", Data: data}})
		if took := time.Since(start); took > 10*time.Second {
			t.Fatalf("%d bytes took %v", len(data), took)
		}
		if (top == nil) == (err == nil) {
			t.Fatalf("topology %v and error %v", top, err)
		}
		if err != nil {
			var all topology.Errors
			if !errors.As(err, &all) {
				t.Fatalf("the error is a %T", err)
			}
			for _, e := range all {
				if strings.ContainsAny(e.Error(), "\n\r") {
					t.Fatalf("an error of several lines: %q", e.Error())
				}
				if strings.Contains(e.Problem, "cannot be read") {
					t.Fatalf("a panic: %s", e.Problem)
				}
			}
			return
		}
		roundTrip(t, top)
	})
}
