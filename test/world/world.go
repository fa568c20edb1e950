// Package world is the truth of a simulated data centre: what has power, which cable leads where, what
// every switch, fabric and array is really set to, what runs on which machine and who wrote what to
// which volume. Simulators are front-ends on it and report into it; a checker watches the safety rules
// S1-S6 on it after every event.
//
// The package is pure: it opens nothing, reads no clock of its own and draws no random numbers. One
// mutex guards it all and is never held while a watcher runs.
package world

import (
	"slices"
	"sync"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/topology"
)

// Config makes a World.
type Config struct {
	Topology *topology.Topology // the cables, racks and volumes; not changed afterwards
	Now      func() time.Time   // the time of events: the wall clock, or a virtual one
	KeepLog  int                // writes kept per volume beside the totals; default 64
}

// Validate names the first key that is wrong.
func (c Config) Validate() error {
	switch {
	case c.Topology == nil:
		return fault.New(fault.Invalid, "world: Topology is missing")
	case c.Now == nil:
		return fault.New(fault.Invalid, "world: Now is missing")
	case c.KeepLog < 0:
		return fault.New(fault.Invalid, "world: KeepLog is negative")
	}
	return nil
}

// World is the whole truth. All methods are safe for concurrent use.
type World struct {
	topo *topology.Topology
	now  func() time.Time
	keep int

	mu       sync.Mutex
	dark     map[string]bool // "rack/x", "powerfeed/x": no mains
	machines map[string]*machine
	switches map[string]*netSwitch
	fabrics  map[string]*fabric
	arrays   map[string]*array
	volumes  map[string]*volume // by topology name

	cables   map[portKey]end            // what hangs on a switch port
	byWWPN   map[string]hbaAt           // who owns a port name
	byAddr   map[string]string          // storage address -> machine
	byTarget map[volumeKey]string       // an array's own name -> topology volume
	holders  map[string]map[runKey]*Run // workload -> who runs it
	newest   map[string]uint64          // workload -> highest epoch that ever ran
	crowded  map[string]bool            // volumes that several machines are masked for or logged in to
	foreign  map[foreignKey]string      // snapshot of what nobody may change
	attested map[string]bool            // machines a person gave up
	given    map[string]uint64          // workload -> newest epoch whose start was given up
	epochs   map[foreignKey]uint64      // highest epoch seen by each thing on a device
	broken   map[Violation]bool         // without At: reported already
	found    []Violation
	acts     []PowerAct
	events   []Event
	watchers map[int]func(Event)
	nextID   int
}

type (
	portKey   struct{ sw, port string }
	volumeKey struct{ array, name string }
	runKey    struct{ machine, vm string }
	hbaAt     struct{ machine, fabric string }
)

// end is the far end of a cable: a machine's NIC, or another switch's port.
type end struct {
	machine, nic string
	sw, port     string
}

// EventKind says what sort of thing changed.
type EventKind string

const (
	EventMachine   EventKind = "machine"   // power, mains, BMC
	EventSwitch    EventKind = "switch"    // alive, management
	EventPort      EventKind = "port"      // settings or carrier
	EventFabric    EventKind = "fabric"    // alive, logins
	EventZone      EventKind = "zone"      // effective zones of a fabric
	EventArray     EventKind = "array"     // alive, management
	EventMask      EventKind = "mask"      // masks and sessions of an array
	EventRun       EventKind = "run"       // a workload started, serves or stopped
	EventViolation EventKind = "violation" // a safety rule was broken
)

// Event says that something changed; what it is now is to be asked for. Events of different callers
// may arrive out of order, therefore they carry no state.
type Event struct {
	Kind EventKind `json:"kind"`
	Name string    `json:"name"`
	Port string    `json:"port,omitempty"`
	At   time.Time `json:"at"`
}

// New builds a world in which every rack has mains, every machine is off, every port carries nothing
// and nobody is zoned or masked.
func New(c Config) (*World, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if c.KeepLog == 0 {
		c.KeepLog = 64
	}
	w := &World{
		topo: c.Topology, now: c.Now, keep: c.KeepLog,
		dark: map[string]bool{}, machines: map[string]*machine{}, switches: map[string]*netSwitch{},
		fabrics: map[string]*fabric{}, arrays: map[string]*array{}, volumes: map[string]*volume{},
		cables: map[portKey]end{}, byWWPN: map[string]hbaAt{}, byAddr: map[string]string{},
		byTarget: map[volumeKey]string{}, holders: map[string]map[runKey]*Run{}, newest: map[string]uint64{},
		crowded: map[string]bool{}, foreign: map[foreignKey]string{}, attested: map[string]bool{}, given: map[string]uint64{}, epochs: map[foreignKey]uint64{},
		broken: map[Violation]bool{}, watchers: map[int]func(Event){},
	}
	w.build()
	return w, nil
}

func (w *World) build() {
	t := w.topo
	for name, s := range t.Switches {
		w.switches[name] = &netSwitch{spec: s.Spec, managed: true, ports: map[string]Port{}}
	}
	for name, s := range t.Switches {
		for _, u := range s.Spec.Uplinks {
			// A link between switches carries every VLAN until somebody says otherwise.
			w.cables[portKey{name, u.Port}] = end{sw: u.Switch, port: u.PeerPort}
			w.cables[portKey{u.Switch, u.PeerPort}] = end{sw: name, port: u.Port}
			w.switches[name].ports[u.Port] = Port{Trunk: true}
			if peer := w.switches[u.Switch]; peer != nil {
				peer.ports[u.PeerPort] = Port{Trunk: true}
			}
		}
	}
	for name, m := range t.Machines {
		w.machines[name] = &machine{spec: m.Spec, managed: true, runs: map[string]*Run{}, vms: map[string]VM{}}
		for _, n := range m.Spec.NICs {
			w.cables[portKey{n.Switch, n.Port}] = end{machine: name, nic: n.Name}
			if s := w.switches[n.Switch]; s != nil {
				s.ports[n.Port] = Port{}
			}
		}
		for _, h := range m.Spec.HBAs {
			w.byWWPN[string(h.WWPN)] = hbaAt{name, h.Fabric}
		}
		if m.Spec.StorageAddress.IsValid() {
			w.byAddr[m.Spec.StorageAddress.String()] = name
		}
	}
	for name, f := range t.Fabrics {
		w.fabrics[name] = &fabric{spec: f.Spec, managed: true, zones: map[string]Zone{}}
	}
	for name, a := range t.Arrays {
		w.arrays[name] = &array{spec: a.Spec, managed: true, masks: map[string]Mask{}, sessions: map[string]map[string]int{}}
	}
	for name, v := range t.Volumes {
		w.volumes[name] = &volume{spec: v.Spec, epochs: map[uint64]*EpochTotal{}, past: map[holder]bool{}}
		w.byTarget[volumeKey{v.Spec.Array, DeviceName(v.Spec)}] = name
	}
}

// DeviceName is what an array itself calls a volume: its target, or the array's own reference.
func DeviceName(v topology.VolumeSpec) string {
	if v.Target != "" {
		return string(v.Target)
	}
	return v.ArrayRef
}

// Watch calls f after every change until stop is called. f runs without the world's lock, on the
// goroutine that made the change.
func (w *World) Watch(f func(Event)) (stop func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	id := w.nextID
	w.nextID++
	w.watchers[id] = f
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.watchers, id)
	}
}

// change runs f under the lock, checks the rules, and tells the watchers after the lock is released.
func (w *World) change(f func() error) error {
	w.mu.Lock()
	err := f()
	w.check()
	events := w.events
	w.events = nil
	ids := make([]int, 0, len(w.watchers))
	for id := range w.watchers {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	fs := make([]func(Event), len(ids))
	for i, id := range ids {
		fs[i] = w.watchers[id]
	}
	w.mu.Unlock()
	for _, e := range events {
		for _, f := range fs {
			f(e)
		}
	}
	return err
}

func (w *World) emit(k EventKind, name, port string) {
	w.events = append(w.events, Event{Kind: k, Name: name, Port: port, At: w.now()})
}

func missing(kind, name string) error {
	return &fault.Error{Kind: fault.NotFound, Where: kind + " " + name, What: "no such " + kind,
		Next: "look at the names in the topology"}
}
