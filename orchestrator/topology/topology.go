package topology

import (
	"maps"
	"reflect"
	"slices"
	"sync/atomic"
)

// Topology is a whole declared data centre. The maps are keyed by name. It is never changed after it
// was built and first queried: a new revision is a new value (Clone, change, validate), so that readers
// need no lock.
type Topology struct {
	Sites         map[string]Site
	Racks         map[string]Rack
	PowerFeeds    map[string]PowerFeed
	HardwareTypes map[string]HardwareType
	Machines      map[string]Machine
	MachinePools  map[string]MachinePool
	Switches      map[string]Switch
	Networks      map[string]Network
	Fabrics       map[string]Fabric
	Arrays        map[string]Array
	Volumes       map[string]Volume
	Images        map[string]Image
	Workloads     map[string]Workload
	Runbooks      map[string]Runbook
	Policies      map[string]Policy

	built atomic.Pointer[index] // made by the first query
}

// New returns an empty topology with all maps made.
func New() *Topology {
	return &Topology{
		Sites: map[string]Site{}, Racks: map[string]Rack{}, PowerFeeds: map[string]PowerFeed{},
		HardwareTypes: map[string]HardwareType{}, Machines: map[string]Machine{},
		MachinePools: map[string]MachinePool{}, Switches: map[string]Switch{},
		Networks: map[string]Network{}, Fabrics: map[string]Fabric{}, Arrays: map[string]Array{},
		Volumes: map[string]Volume{}, Images: map[string]Image{}, Workloads: map[string]Workload{},
		Runbooks: map[string]Runbook{}, Policies: map[string]Policy{},
	}
}

// Object is the metadata and spec of any object, for callers that treat all kinds alike. The spec is a
// copy of the kind's Spec type, e.g. MachineSpec.
func (t *Topology) Object(kind Kind, name string) (Meta, any, bool) {
	k := kindModelOf(kind)
	if k == nil {
		return Meta{}, nil, false
	}
	m, spec, ok := k.get(t, name)
	if !ok {
		return Meta{}, nil, false
	}
	return m, spec.Interface(), true
}

// Names lists the objects of a kind, sorted.
func (t *Topology) Names(kind Kind) []string {
	k := kindModelOf(kind)
	if k == nil {
		return nil
	}
	out := k.names(t)
	slices.Sort(out)
	return out
}

// Len counts all objects.
func (t *Topology) Len() int {
	n := 0
	for i := range kindModels {
		n += len(kindModels[i].names(t))
	}
	return n
}

// Clone is a deep copy that may be changed until its first query.
func (t *Topology) Clone() *Topology {
	out := New()
	for i := range kindModels {
		k := &kindModels[i]
		for _, name := range k.names(t) {
			m, spec, _ := k.get(t, name)
			m.Labels = maps.Clone(m.Labels)
			k.put(out, m, deepCopy(spec))
		}
	}
	return out
}

// deepCopy copies the slices and maps under v. Specs hold no pointers.
func deepCopy(v reflect.Value) reflect.Value {
	out := reflect.New(v.Type()).Elem()
	out.Set(v)
	switch {
	case reflect.PointerTo(v.Type()).Implements(textUnmarshaler):
	case v.Kind() == reflect.Struct:
		for i := range v.NumField() {
			out.Field(i).Set(deepCopy(v.Field(i)))
		}
	case v.Kind() == reflect.Slice && !v.IsNil():
		out.Set(reflect.MakeSlice(v.Type(), v.Len(), v.Len()))
		for i := range v.Len() {
			out.Index(i).Set(deepCopy(v.Index(i)))
		}
	case v.Kind() == reflect.Map && !v.IsNil():
		out.Set(reflect.MakeMapWithSize(v.Type(), v.Len()))
		for _, key := range v.MapKeys() {
			out.SetMapIndex(key, v.MapIndex(key))
		}
	}
	return out
}
