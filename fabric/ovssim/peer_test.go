package ovssim_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"testing"

	"rerack.dev/rerack/fabric/ovssim"
)

const realSchema = "/usr/share/openvswitch/vswitch.ovsschema"

func needs(t *testing.T, what string, err error) {
	t.Helper()
	if err == nil {
		return
	}
	if os.Getenv("RERACK_REQUIRE_PEERS") == "1" {
		t.Fatalf("package openvswitch-switch is required: %s: %v", what, err)
	}
	t.Skipf("needs package openvswitch-switch: %s: %v", what, err)
}

// TestTheirClient lets Open vSwitch's own client talk to the simulator.
func TestTheirClient(t *testing.T) {
	_, err := exec.LookPath("ovsdb-client")
	needs(t, "ovsdb-client", err)
	sim, err := ovssim.Start(ovssim.Config{Ports: []ovssim.Port{{Name: "p1", Untagged: 7}, {Name: "p2", Tagged: []int{5, 6}}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(sim.Close)
	client := func(args ...string) string {
		t.Helper()
		out, err := exec.Command("ovsdb-client", append([]string{"--timeout=20"}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("ovsdb-client %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	if got := client("list-dbs", sim.Endpoint()); strings.TrimSpace(got) != "Open_vSwitch" {
		t.Errorf("databases: %q", got)
	}
	if got := client("dump", "--format=csv", sim.Endpoint(), "Open_vSwitch", "Port", "name", "tag", "trunks"); !strings.Contains(got, "p1,7,[]") || !strings.Contains(got, `p2,[],"[5, 6]"`) {
		t.Errorf("dump of the ports:\n%s", got)
	}
	got := client("transact", sim.Endpoint(), `["Open_vSwitch",
		{"op":"wait","table":"Port","timeout":0,"where":[["name","==","p1"]],"columns":["tag"],"until":"==","rows":[{"tag":7}]},
		{"op":"update","table":"Port","where":[["name","==","p1"]],"row":{"tag":8}},
		{"op":"select","table":"Port","where":[["name","==","p1"]],"columns":["tag","trunks"]},
		{"op":"commit","durable":true}]`)
	if want := `[{},{"count":1},{"rows":[{"tag":8,"trunks":["set",[]]}]},{}]`; strings.TrimSpace(got) != want {
		t.Errorf("transact answers %s, want %s", got, want)
	}
	if s, _ := sim.Port("p1"); s.Untagged != 8 {
		t.Errorf("p1 is %+v", s)
	}
}

// TestSchemaIsASubsetOfTheRealOne holds every column of ours against the real schema.
func TestSchemaIsASubsetOfTheRealOne(t *testing.T) {
	raw, err := os.ReadFile(realSchema)
	needs(t, "schema", err)
	ours, err := os.ReadFile("openvswitch.ovsschema")
	if err != nil {
		t.Fatal(err)
	}
	type schema struct {
		Name   string
		Tables map[string]struct {
			Columns map[string]struct{ Type any }
			Indexes any
		}
	}
	var theirs, mine schema
	for data, into := range map[string]*schema{string(raw): &theirs, string(ours): &mine} {
		if err := json.Unmarshal([]byte(data), into); err != nil {
			t.Fatal(err)
		}
	}
	if mine.Name != theirs.Name {
		t.Errorf("name %q", mine.Name)
	}
	for table, def := range mine.Tables {
		for col, c := range def.Columns {
			if a, b := canonical(t, c.Type), canonical(t, theirs.Tables[table].Columns[col].Type); a != b {
				t.Errorf("%s.%s has type %s, really %s", table, col, a, b)
			}
		}
		if a, b := canonical(t, def.Indexes), canonical(t, theirs.Tables[table].Indexes); a != b {
			t.Errorf("%s has indexes %s, really %s", table, a, b)
		}
	}
}

// canonical writes a type with its enums in order and its short forms spelled out.
func canonical(t *testing.T, v any) string {
	t.Helper()
	if m, ok := v.(map[string]any); ok {
		for _, k := range []string{"key", "value"} {
			if s, ok := m[k].(string); ok {
				m[k] = map[string]any{"type": s}
			}
		}
		if key, ok := m["key"].(map[string]any); ok {
			if enum, ok := key["enum"].([]any); ok {
				sortStrings(enum[1].([]any))
			}
		}
	}
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}
