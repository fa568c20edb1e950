package topology_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"rerack.dev/rerack/orchestrator/topology"
)

// roundTrip checks that YAML and JSON read back to an equal topology and that writing is a fixpoint.
func roundTrip(t interface {
	Helper()
	Fatalf(string, ...any)
}, top *topology.Topology) {
	t.Helper()
	text, err := topology.Marshal(top)
	if err != nil {
		t.Fatalf("marshal: %v", err)
	}
	again, err := topology.Load([]topology.File{{Name: "marshalled.yaml", Data: text}})
	if err != nil {
		t.Fatalf("load of what was marshalled: %v\n%s", err, text)
	}
	if !topology.Equal(top, again) || !sameObjects(top, again) {
		t.Fatalf("YAML reads back to another topology:\n%s", topology.FormatDiff(topology.Diff(top, again)))
	}
	if text2, _ := topology.Marshal(again); !bytes.Equal(text, text2) {
		t.Fatalf("marshal is no fixpoint:\n%s\nthen\n%s", text, text2)
	}
	if d := topology.Diff(top, again); len(d) != 0 {
		t.Fatalf("a difference between equals: %v", d)
	}
	j, err := topology.EncodeJSON(top)
	if err != nil || !json.Valid(j) {
		t.Fatalf("encode JSON: %v\n%s", err, j)
	}
	back, err := topology.DecodeJSON(j)
	if err != nil || !sameObjects(top, back) {
		t.Fatalf("JSON reads back to another topology: %v", err)
	}
}

// sameObjects compares the maps themselves, without the package's own idea of equality.
func sameObjects(a, b *topology.Topology) bool {
	for _, k := range topology.Kinds() {
		if !reflect.DeepEqual(a.Names(k), b.Names(k)) {
			return false
		}
		for _, n := range a.Names(k) {
			am, as, _ := a.Object(k, n)
			bm, bs, _ := b.Object(k, n)
			if !reflect.DeepEqual(am, bm) || !reflect.DeepEqual(as, bs) {
				return false
			}
		}
	}
	return true
}

func TestMarshal(t *testing.T) {
	base, err := os.ReadFile("testdata/base.yaml")
	if err != nil {
		t.Fatal(err)
	}
	top, err := topology.Load([]topology.File{{Name: "base.yaml", Data: base}})
	if err != nil {
		t.Fatal(err)
	}
	roundTrip(t, top)
	roundTrip(t, load(t, "story"))
	text, err := topology.Marshal(top)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "testdata/base.golden.yaml", text)
	j, err := topology.EncodeObjectJSON(top, topology.KindMachine, "m1")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "testdata/m1.golden.json", append(j, '\n'))
	if _, err := topology.MarshalObject(top, topology.KindMachine, "m3"); err == nil || err.Error() != `there is no Machine "m3" (did you mean "m1"?)` {
		t.Errorf("an unknown object: %v", err)
	}
}

// TestMarshalAnyText checks that no text, whatever it looks like in YAML, changes on its way.
func TestMarshalAnyText(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		top := topology.New()
		awkward := rapid.SampledFrom([]string{"yes", "null", "~", "0x10", "1e3", "1:30", "- a", "a: b", "a #b", "'", "\"", "#", "&a", "*a", "!t",
			"<<", "|", ">", "%", "@", "`", "{}", "[]", " a", "a ", "---", "...", "2001-01-01", "0o7", "1_000", ".inf", "=", "é", "中", "\\", "?", "-", "a:b", "C:"})
		text := rapid.OneOf(awkward, rapid.StringMatching(`[ -~]{1,40}`))
		labels := rapid.MapOfN(rapid.StringMatching(`[A-Za-z0-9][A-Za-z0-9._/-]{0,20}`), text, 0, 5).Draw(r, "labels")
		if len(labels) == 0 {
			labels = nil
		}
		name := rapid.StringMatching(`[a-z0-9]([a-z0-9-]{0,9}[a-z0-9])?`).Draw(r, "name")
		top.Sites[name] = topology.Site{Kind: topology.KindSite, Meta: topology.Meta{Name: name, Labels: labels},
			Spec: topology.SiteSpec{Location: text.Draw(r, "location")}}
		top.Networks[name] = topology.Network{Kind: topology.KindNetwork, Meta: topology.Meta{Name: name},
			Spec: topology.NetworkSpec{Site: name, VLAN: 1, Subnet: netip.MustParsePrefix("fd00::/64")}}
		roundTrip(r, top)
	})
}

func TestHash(t *testing.T) {
	a := load(t, "story")
	if h := topology.Hash(a); len(h) != 64 || h != topology.Hash(a.Clone()) {
		t.Errorf("the hash of a clone differs: %s", h)
	}
	b := a.Clone()
	w := b.Workloads["web1"]
	w.Spec.Priority++
	b.Workloads["web1"] = w
	if topology.Equal(a, b) {
		t.Error("another priority is not seen")
	}
	if topology.Hash(a) == topology.Hash(load(t, "story-scarce")) {
		t.Error("two topologies have one hash")
	}
}

func TestDecodeJSONRefuses(t *testing.T) {
	obj := `{"apiVersion":"rerack/v1","kind":"Site","metadata":{"name":"x"},"spec":{}}`
	doc := func(s string) string { return `{"apiVersion":"rerack/v1","objects":[` + s + `]}` }
	for text, want := range map[string]string{
		"":                     "not JSON: EOF, at byte 0",
		"{":                    "not JSON: EOF, at byte 1",
		"[]":                   `wants a map, has a list ({"apiVersion": "rerack/v1", "objects": […]})`,
		doc(obj) + "x":         "not JSON: there is something after the value, at byte",
		`{"objects":[]}`:       "apiVersion: is required (rerack/v1)",
		`{"apiVersion":"v2"}`:  `apiVersion: unknown version "v2" (rerack/v1)`,
		doc(obj + "," + obj):   "objects[1]: Site x: metadata.name: is declared twice (first at objects[0])",
		doc(`{"kind":"Site"}`): "objects[0]: Site: metadata: is required",
		doc("7"):               "objects[0]: wants a map, has the number 7",
		doc(strings.Repeat("[", 40) + strings.Repeat("]", 40)):                                             "nested deeper than 32",
		doc(`{"apiVersion":"rerack/v1","kind":"Site","metadata":{"name":"x","name":"y"}}`):                 "objects[0]: Site x: metadata.name: is given twice",
		doc(`{"apiVersion":"rerack/v1","kind":"Site","metadata":{"name":"x"},"spec":{"location":null}}`):   "objects[0]: Site x: spec.location: has no value",
		doc(`{"apiVersion":"rerack/v1","kind":"Site","metadata":{"name":"x"},"spec":{"Location":"a"}}`):    `objects[0]: Site x: spec.Location: unknown field (did you mean "location"?)`,
		doc(`{"apiVersion":"rerack/v1","kind":"Site","metadata":{"name":"x"},"spec":{"location":"a\nb"}}`): "line break",
	} {
		_, err := topology.DecodeJSON([]byte(text))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\ngot  %v\nwant %s", text, err, want)
		}
	}
	var inner struct{ T *topology.Topology }
	if err := json.Unmarshal(fmt.Appendf(nil, `{"T":%s}`, doc(obj)), &inner); err != nil || len(inner.T.Sites) != 1 {
		t.Errorf("as a part of another document: %v", err)
	}
}

func FuzzDecodeJSON(f *testing.F) {
	top := base(f)
	for _, k := range topology.Kinds() {
		for _, n := range top.Names(k) {
			j, err := topology.EncodeObjectJSON(top, k, n)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(fmt.Appendf(nil, `{"apiVersion":"rerack/v1","objects":[%s]}`, j))
		}
	}
	f.Add([]byte(`{"apiVersion":"rerack/v1","objects":[null,1,"a",[],{}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		top, err := topology.DecodeJSON(data)
		if (top == nil) == (err == nil) {
			t.Fatalf("topology %v and error %v", top, err)
		}
		if err == nil {
			roundTrip(t, top)
		}
	})
}
