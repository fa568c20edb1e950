package world

import (
	"slices"

	"rerack.dev/rerack/orchestrator/topology"
)

type fabric struct {
	spec    topology.FabricSpec
	dead    bool
	managed bool
	zones   map[string]Zone
}

type array struct {
	spec     topology.ArraySpec
	dead     bool
	managed  bool
	masks    map[string]Mask           // by the array's own name of the volume
	sessions map[string]map[string]int // volume -> initiator -> how many
}

// Zone is one effective zone of a fabric: every member sees every other.
type Zone struct {
	Name    string   `json:"name"`
	Members []string `json:"members"` // WWPNs, lower case with colons
	Epoch   uint64   `json:"epoch,omitempty"`
}

// Mask says which initiators an array lets in to a volume.
type Mask struct {
	Initiators []string `json:"initiators"` // IP addresses, or WWPNs
	Epoch      uint64   `json:"epoch,omitempty"`
}

// Everybody in the mask of an iSCSI volume lets any address in.
const Everybody = "ALL"

// SetZones replaces the effective zones of a fabric as a whole, as a commit does.
func (w *World) SetZones(name string, zones []Zone) error {
	return w.change(func() error {
		f := w.fabrics[name]
		if f == nil {
			return missing("fabric", name)
		}
		before := w.allServing()
		clear(f.zones)
		for _, z := range zones {
			z.Members = slices.Sorted(slices.Values(z.Members))
			w.seeEpoch(foreignKey{"zone", name, z.Name}, z.Epoch)
			f.zones[z.Name] = z
		}
		w.judgeCut(before, "zones of fabric "+name)
		w.emit(EventZone, name, "")
		return nil
	})
}

// SetMask records who may reach a volume, named as the array names it.
func (w *World) SetMask(arrayName, volume string, m Mask) error {
	return w.change(func() error {
		a := w.arrays[arrayName]
		if a == nil {
			return missing("array", arrayName)
		}
		m.Initiators = slices.Sorted(slices.Values(m.Initiators))
		w.seeEpoch(foreignKey{"mask", arrayName, volume}, m.Epoch)
		var before []Run
		for _, i := range a.masks[volume].Initiators {
			before = append(before, w.serving(w.owner(i))...)
		}
		a.masks[volume] = m
		w.count(arrayName, volume)
		w.judgeCut(before, "mask of "+volume+" on array "+arrayName)
		w.emit(EventMask, arrayName, "")
		return nil
	})
}

// owner finds the machine behind an initiator's address or port name.
func (w *World) owner(initiator string) string {
	if h, ok := w.byWWPN[initiator]; ok {
		return h.machine
	}
	return w.byAddr[initiator]
}

// Zones reads the effective zones of a fabric, by name.
func (w *World) Zones(name string) []Zone {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []Zone
	if f := w.fabrics[name]; f != nil {
		for _, z := range f.zones {
			z.Members = slices.Clone(z.Members)
			out = append(out, z)
		}
	}
	slices.SortFunc(out, func(a, b Zone) int { return compare(a.Name, b.Name) })
	return out
}

// MaskOf reads the mask of a volume, named as the array names it.
func (w *World) MaskOf(arrayName, volume string) (Mask, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	a := w.arrays[arrayName]
	if a == nil {
		return Mask{}, false
	}
	m, ok := a.masks[volume]
	m.Initiators = slices.Clone(m.Initiators)
	return m, ok
}

// SetSession opens or closes a live iSCSI session. A session that was open keeps working when its
// mask is withdrawn, until the array ends it.
func (w *World) SetSession(arrayName, volume, initiator string, open bool) error {
	return w.change(func() error {
		a := w.arrays[arrayName]
		if a == nil {
			return missing("array", arrayName)
		}
		of := a.sessions[volume]
		if of == nil {
			of = map[string]int{}
			a.sessions[volume] = of
		}
		if open {
			of[initiator]++
		} else if of[initiator]--; of[initiator] <= 0 {
			delete(of, initiator)
		}
		w.count(arrayName, volume)
		w.emit(EventMask, arrayName, "")
		return nil
	})
}

// dropSessions ends all sessions of an array that lost power.
func (w *World) dropSessions(name string, a *array) {
	for volume := range a.sessions {
		delete(a.sessions, volume)
		w.count(name, volume)
	}
}

// ArrayState says whether an array has power and whether its management answers.
func (w *World) ArrayState(name string) (alive, reachable bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	a := w.arrays[name]
	if a == nil {
		return false, false
	}
	alive = w.arrayAlive(a)
	return alive, alive && a.managed
}

func (w *World) arrayAlive(a *array) bool { return !a.dead && w.rackMains(a.spec.Rack) }

// Logins lists the port names logged in to a fabric: HBAs of machines that are on, and targets of
// arrays that live.
func (w *World) Logins(name string) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	f := w.fabrics[name]
	if f == nil || f.dead {
		return nil
	}
	var out []string
	for wwpn, at := range w.byWWPN {
		if at.fabric == name && w.machines[at.machine].on {
			out = append(out, wwpn)
		}
	}
	for _, a := range w.arrays {
		for _, t := range a.spec.Targets {
			if t.Fabric == name && w.arrayAlive(a) {
				out = append(out, string(t.WWPN))
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// FabricState says whether a fabric works and whether its management answers.
func (w *World) FabricState(name string) (alive, reachable bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f := w.fabrics[name]
	if f == nil {
		return false, false
	}
	return !f.dead, !f.dead && f.managed
}

// ArrayLogins lists the machines' port names that are logged in to an array: a fabric lets an HBA see
// only the targets it is zoned with.
func (w *World) ArrayLogins(name string) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	a := w.arrays[name]
	if a == nil || !w.arrayAlive(a) {
		return nil
	}
	var out []string
	for _, m := range w.machines {
		for _, h := range m.spec.HBAs {
			if m.on && w.zoned(h, a) {
				out = append(out, string(h.WWPN))
			}
		}
	}
	slices.Sort(out)
	return out
}

// CanWrite reports whether a machine's writes to a volume arrive now.
func (w *World) CanWrite(machine, volume string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.canWrite(machine, volume)
}

func (w *World) canWrite(name, vol string) bool {
	m, v := w.machines[name], w.volumes[vol]
	if m == nil || v == nil || !m.on {
		return false
	}
	a := w.arrays[v.spec.Array]
	if a == nil || !w.arrayAlive(a) {
		return false
	}
	device := DeviceName(v.spec)
	mask := a.masks[device]
	if v.spec.Protocol == topology.ISCSI {
		addr := m.spec.StorageAddress.String()
		allowed := slices.Contains(mask.Initiators, addr) || slices.Contains(mask.Initiators, Everybody) || a.sessions[device][addr] > 0
		return allowed && w.connected(m)
	}
	for _, h := range m.spec.HBAs {
		if slices.Contains(mask.Initiators, string(h.WWPN)) && w.zoned(h, a) {
			return true
		}
	}
	return false
}

// zoned reports whether some effective zone joins the HBA with a target of the array on its fabric.
func (w *World) zoned(h topology.HBA, a *array) bool {
	f := w.fabrics[h.Fabric]
	if f == nil || f.dead {
		return false
	}
	for _, z := range f.zones {
		if !slices.Contains(z.Members, string(h.WWPN)) {
			continue
		}
		for _, t := range a.spec.Targets {
			if t.Fabric == h.Fabric && slices.Contains(z.Members, string(t.WWPN)) {
				return true
			}
		}
	}
	return false
}
