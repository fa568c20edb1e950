package topology_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"reflect"
	"strings"
	"testing"
	"time"

	"rerack.dev/rerack/orchestrator/topology"
)

func TestDiff(t *testing.T) {
	old := load(t, "story")
	if got := topology.Diff(old, old.Clone()); len(got) != 0 {
		t.Fatalf("a clone differs: %v", got)
	}
	if got := topology.FormatDiff(nil); got != "no differences\n" {
		t.Errorf("nothing renders as %q", got)
	}
	now := old.Clone()
	w := now.Workloads["web1"]
	w.Spec.Priority, w.Spec.SpreadGroup, w.Spec.Hostname = 510, "", "www"
	w.Spec.Networks = w.Spec.Networks[:1]
	now.Workloads["web1"] = w
	m := now.Machines["a07"]
	m.Meta.Labels = map[string]string{"pool": "production", "tier": "gold"}
	m.Spec.NICs[0].Port = "p77"
	now.Machines["a07"] = m
	delete(now.Workloads, "print4")
	s := now.Sites["hall-1"]
	s.Meta.Name, s.Spec.Location = "hall-2", "Hall 2 \"new\""
	now.Sites["hall-2"] = s
	changes := topology.Diff(old, now)
	golden(t, "testdata/diff.golden.txt", []byte(topology.FormatDiff(changes)))
	if len(changes) != 4 || changes[0].Op != topology.OpAdd || changes[3].Op != topology.OpChange {
		t.Errorf("the changes are %+v", changes)
	}
	// What was added one way is removed the other way.
	for i, c := range topology.Diff(now, old) {
		for j, f := range c.Fields {
			if b := changes[i].Fields[j]; f.Path != b.Path || f.Old != b.New || f.New != b.Old {
				t.Errorf("%s %s: %+v is not the reverse of %+v", c.Kind, c.Name, f, b)
			}
		}
	}
}

func TestJSONSchema(t *testing.T) {
	s, err := topology.JSONSchema()
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "testdata/schema.golden.json", s)
	var root struct {
		OneOf []struct {
			Ref string `json:"$ref"`
		} `json:"oneOf"`
		Defs map[string]json.RawMessage `json:"$defs"`
	}
	if err := json.Unmarshal(s, &root); err != nil {
		t.Fatal(err)
	}
	for i, k := range topology.Kinds() {
		if _, ok := root.Defs[string(k)]; !ok || root.OneOf[i].Ref != "#/$defs/"+string(k) {
			t.Errorf("kind %s is not in the schema", k)
		}
	}
}

// TestJSONSchemaPeer holds the examples and the error cases against the schema with an independent
// implementation, python3-jsonschema.
func TestJSONSchemaPeer(t *testing.T) {
	if err := exec.Command("python3", "-c", "import jsonschema.validators; jsonschema.validators.Draft202012Validator").Run(); err != nil {
		if os.Getenv("RERACK_REQUIRE_PEERS") == "1" {
			t.Fatal("python3-jsonschema is required and missing")
		}
		t.Skip("python3-jsonschema is not installed")
	}
	s, err := topology.JSONSchema()
	if err != nil {
		t.Fatal(err)
	}
	type doc struct {
		Name  string          `json:"name"`
		Valid bool            `json:"valid"`
		Doc   json.RawMessage `json:"doc"`
	}
	var docs []doc
	top := load(t, "story")
	for _, k := range topology.Kinds() {
		for _, n := range top.Names(k) {
			j, err := topology.EncodeObjectJSON(top, k, n)
			if err != nil {
				t.Fatal(err)
			}
			docs = append(docs, doc{string(k) + " " + n, true, j})
		}
	}
	good := `{"apiVersion":"rerack/v1","kind":"Network","metadata":{"name":"n"},"spec":{"site":"s","vlan":5,"subnet":"10.0.0.0/8"}}`
	docs = append(docs, doc{"good", true, json.RawMessage(good)})
	for name, edit := range map[string][2]string{
		"version": {"rerack/v1", "rerack/v2"}, "kind": {"Network", "Netwrk"}, "name": {`"n"`, `"N_"`}, "field": {`"vlan"`, `"vlam"`},
		"bound": {":5", ":5000"}, "type": {":5", `:"5"`}, "subnet": {"10.0.0.0/8", "ten"}, "required": {`"site":"s",`, ""},
	} {
		docs = append(docs, doc{"bad " + name, false, json.RawMessage(strings.Replace(good, edit[0], edit[1], 1))})
	}
	input, err := json.Marshal(map[string]any{"schema": json.RawMessage(s), "docs": docs})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "python3", "-c", `
import json, sys
from jsonschema.validators import Draft202012Validator as V
d = json.load(sys.stdin)
V.check_schema(d["schema"])
v = V(d["schema"])
for x in d["docs"]:
    errors = [e.message for e in v.iter_errors(x["doc"])]
    if x["valid"] != (not errors):
        print(x["name"], errors[:1])
`)
	cmd.Stdin = strings.NewReader(string(input))
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestExplain(t *testing.T) {
	var all strings.Builder
	for _, path := range []string{"machine", "Machines", "machine.spec.nics", "machine.spec.nics.mac", "machine.nics[].switch", "switch.metadata.name",
		"policy.spec.evidence", "workload.requires", "image.cmdline", "network.vlan", "runbook.rto", "array.portals"} {
		d, err := topology.Explain(path)
		if err != nil {
			t.Fatal(err)
		}
		all.WriteString("== " + path + "\n" + d.String() + "\n")
	}
	golden(t, "testdata/explain.golden.txt", []byte(all.String()))
	for path, want := range map[string]string{
		"machin":                   `there is no kind "machin" (did you mean "machine"?)`,
		"toaster":                  `there is no kind "toaster" (kinds: Site,`,
		"machine.spec.nisc":        `machine.spec has no field "nisc" (did you mean "nics"?)`,
		"machine.spec.nics.mca":    `machine.spec.nics has no field "mca" (did you mean "mac"?)`,
		"machine.spec.nics.mac.x":  `machine.spec.nics.mac has no field "x"`,
		"machine.metadata.nam":     `machine.metadata has no field "nam" (did you mean "name"?)`,
		"":                         `there is no kind "" (kinds: Site,`,
		"machine.spec.":            `machine.spec has no field ""`,
		"workload.labels":          `workload.spec has no field "labels"`,
		"policy.evidence.pollevry": `policy.spec.evidence has no field "pollevry" (did you mean "pollEvery"?)`,
	} {
		if _, err := topology.Explain(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q\ngot  %v\nwant %s", path, err, want)
		}
	}
}

// TestEveryFieldIsExplained walks all fields of all kinds: none is without words.
func TestEveryFieldIsExplained(t *testing.T) {
	var walk func(path string, fields []topology.Doc)
	walk = func(path string, fields []topology.Doc) {
		for _, f := range fields {
			at := path + "." + f.Path
			if f.Doc == "" || f.Type == "" {
				t.Errorf("%s has no doc or type", at)
			}
			d, err := topology.Explain(at)
			if err != nil {
				t.Fatal(err)
			}
			walk(at, d.Fields)
		}
	}
	for _, k := range topology.Kinds() {
		d, err := topology.Explain(string(k))
		if err != nil || d.Doc == "" {
			t.Fatalf("%s: %v", k, err)
		}
		walk(string(k), d.Fields)
	}
}

func TestEffectivePolicy(t *testing.T) {
	top := load(t, "story")
	builtIn := topology.EffectivePolicy(top, "")
	want := topology.PolicySpec{
		Evidence: topology.EvidencePolicy{PollEvery: topology.Duration(10 * time.Second), SilentAfter: topology.Duration(30 * time.Second),
			HoldFor: topology.Duration(30 * time.Second), MaxAge: topology.Duration(time.Minute), MinKinds: 2, MassPercent: 34,
			SuspectDeadline: topology.Duration(5 * time.Minute)},
		Fencing: topology.FencingPolicy{OffReadings: 3, OffInterval: topology.Duration(5 * time.Second),
			PowerLimit: topology.Duration(time.Minute), DeviceLimit: topology.Duration(time.Minute)},
		Recovery: topology.RecoveryPolicy{BootDeadline: topology.Duration(15 * time.Minute), HealthDeadline: topology.Duration(5 * time.Minute),
			Rounds: 4, BootsAtOnce: 64, ResendOn: topology.Duration(30 * time.Second), HostReserveMiB: 2048},
	}
	if !reflect.DeepEqual(builtIn, want) {
		t.Errorf("the built-in policy is\n%+v\nwant\n%+v", builtIn, want)
	}
	if got := topology.EffectivePolicy(top, "no-such"); got != builtIn {
		t.Errorf("an unknown policy is %+v", got)
	}
	lab := topology.EffectivePolicy(top, "lab")
	if lab.Evidence.MassPercent != 80 || lab.Evidence.MinKinds != 2 || lab.Fencing.OffInterval != topology.Duration(300*time.Millisecond) {
		t.Errorf("the lab's policy is %+v", lab)
	}
	if top.Policies["lab"].Spec.Evidence.MinKinds != 0 {
		t.Error("the defaults were written into the topology")
	}
}
