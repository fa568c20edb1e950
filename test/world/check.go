package world

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Violation is one broken safety rule. Once found it stays.
type Violation struct {
	Rule    string    `json:"rule"` // S1, S2, S3, S5, S6
	Subject string    `json:"subject"`
	Detail  string    `json:"detail"`
	At      time.Time `json:"at"`
}

// foreignKey names one thing on one device: a port, a zone, a mask, a VM.
type foreignKey struct{ kind, device, name string }

// Check looks at everything once more and returns every violation ever found, oldest first.
func (w *World) Check() []Violation {
	_ = w.change(func() error { return nil })
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.found)
}

// Attest records that a person gave up a machine: what runs there may be powered off and cut off.
func (w *World) Attest(machine string) error {
	return w.change(func() error {
		if w.machines[machine] == nil {
			return missing("machine", machine)
		}
		w.attested[machine] = true
		return nil
	})
}

// GiveUp records that who started a workload with an epoch gave that start up: whatever became of it, it may be
// stopped and cut off.
func (w *World) GiveUp(workload string, epoch uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.given[workload] = max(w.given[workload], epoch)
}

// Protect takes what a port, zone or mask is set to now as what it must stay (rule S6). kind is port,
// zone or mask; device the switch, fabric or array.
func (w *World) Protect(kind, device, name string) error {
	return w.change(func() error {
		k := foreignKey{kind, device, name}
		now, ok := w.snapshot(k)
		if !ok {
			return missing(kind, device+"/"+name)
		}
		w.foreign[k] = now
		return nil
	})
}

// Acts lists every power-off by a controller, oldest first.
func (w *World) Acts() []PowerAct {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.acts)
}

func (w *World) violate(rule, subject, detail string) {
	v := Violation{Rule: rule, Subject: subject, Detail: detail}
	if w.broken[v] {
		return
	}
	w.broken[v] = true
	v.At = w.now()
	w.found = append(w.found, v)
	w.emit(EventViolation, subject, "")
}

// check applies the rules that are about states; those about acts are judged where the act is done.
func (w *World) check() {
	w.checkIdentities()
	w.checkVolumes()
	w.checkForeign()
}

// checkIdentities is S1: of all that hold a workload's identity, one at most can use it.
func (w *World) checkIdentities() {
	for name, held := range w.holders {
		if len(held) < 2 {
			continue
		}
		var able []string
		for _, r := range w.runsOf(name) {
			if w.hasReach(r) {
				able = append(able, place(r.Machine, r.VM))
			}
		}
		if len(able) > 1 {
			w.violate("S1", "workload "+name, "identity in use on "+strings.Join(able, " and "))
		}
	}
}

// checkVolumes is S2 for states: one machine at most that runs something can write a volume that is
// not shared.
func (w *World) checkVolumes() {
	for _, name := range slices.Sorted(maps.Keys(w.crowded)) {
		var able []string
		for _, m := range w.candidates(w.volumes[name]) {
			if len(w.machines[m].runs) > 0 && w.canWrite(m, name) {
				able = append(able, m)
			}
		}
		if len(able) > 1 {
			w.violate("S2", "volume "+name, "writable by "+strings.Join(able, " and "))
		}
	}
}

// count keeps the short list of volumes that several machines might reach.
func (w *World) count(arrayName, device string) {
	name, ok := w.byTarget[volumeKey{arrayName, device}]
	if !ok {
		return
	}
	delete(w.crowded, name)
	if v := w.volumes[name]; !v.spec.Shared && len(w.candidates(v)) > 1 {
		w.crowded[name] = true
	}
}

// candidates are the machines that are masked for a volume or still hold a session to it.
func (w *World) candidates(v *volume) []string {
	a, device := w.arrays[v.spec.Array], DeviceName(v.spec)
	initiators := slices.Clone(a.masks[device].Initiators)
	for i := range a.sessions[device] {
		initiators = append(initiators, i)
	}
	if slices.Contains(initiators, Everybody) {
		return slices.Sorted(maps.Keys(w.machines))
	}
	var out []string
	for _, i := range initiators {
		if m := w.owner(i); m != "" {
			out = append(out, m)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// checkForeign is S6: what was planted as somebody else's is as it was.
func (w *World) checkForeign() {
	for k, want := range w.foreign {
		now, ok := w.snapshot(k)
		if !ok {
			now = "gone"
		}
		if now != want {
			w.violate("S6", k.kind+" "+k.device+"/"+k.name, "was "+want+", is "+now)
		}
	}
}

func (w *World) snapshot(k foreignKey) (string, bool) {
	switch k.kind {
	case "port":
		if s := w.switches[k.device]; s != nil {
			p, ok := s.ports[k.name]
			return fmt.Sprintf("untagged %d tagged %v trunk %t shut %t", p.Untagged, p.Tagged, p.Trunk, p.Shut), ok
		}
	case "zone":
		if f := w.fabrics[k.device]; f != nil {
			z, ok := f.zones[k.name]
			return strings.Join(z.Members, " "), ok
		}
	case "mask":
		if a := w.arrays[k.device]; a != nil {
			m, ok := a.masks[k.name]
			return strings.Join(m.Initiators, " "), ok
		}
	}
	return "", false
}

// seeEpoch is S5: the epoch on a thing never goes down. Epoch 0 means not ours, or not told.
func (w *World) seeEpoch(k foreignKey, epoch uint64) {
	if epoch == 0 {
		return
	}
	if was := w.epochs[k]; epoch < was {
		w.violate("S5", k.kind+" "+k.device+"/"+k.name, fmt.Sprintf("epoch went from %d to %d", was, epoch))
		return
	}
	w.epochs[k] = epoch
}

// judgePowerOff is S3: nobody powers off a machine that serves a workload which is not repurposable,
// unless it burned, a person gave it up, or the workload has moved on under a newer epoch.
func (w *World) judgePowerOff(name string, m *machine, by string) {
	act := PowerAct{At: w.now(), Machine: name, By: by, Burned: m.burned, Attested: w.attested[name]}
	for _, vm := range slices.Sorted(maps.Keys(m.runs)) {
		r := *m.runs[vm]
		act.Runs = append(act.Runs, r)
		if w.protected(r) {
			w.violate("S3", "machine "+name, fmt.Sprintf("powered off by %s while it served %s, epoch %d", by, r.Workload, r.Epoch))
		}
	}
	w.acts = append(w.acts, act)
}

// protected reports whether a run must not be taken down by anybody but its owner.
func (w *World) protected(r Run) bool {
	m := w.machines[r.Machine]
	return r.Serving && !w.topo.Workloads[r.Workload].Spec.Repurposable && !m.burned && !w.attested[r.Machine] &&
		r.Epoch >= w.newest[r.Workload] && r.Epoch > w.given[r.Workload]
}

// serving lists the protected runs of a machine that have reach now.
func (w *World) serving(name string) []Run {
	m := w.machines[name]
	if m == nil {
		return nil
	}
	var out []Run
	for _, vm := range slices.Sorted(maps.Keys(m.runs)) {
		if r := *m.runs[vm]; w.protected(r) && w.fullReach(r) {
			out = append(out, r)
		}
	}
	return out
}

func (w *World) allServing() []Run {
	var out []Run
	for _, name := range slices.Sorted(maps.Keys(w.machines)) {
		out = append(out, w.serving(name)...)
	}
	return out
}

// judgeCut is the other half of S3: a change of a port, zone or mask must not take network or volumes
// from a run that is to be left alone.
func (w *World) judgeCut(before []Run, by string) {
	for _, r := range before {
		if !w.fullReach(r) {
			w.violate("S3", "machine "+r.Machine, fmt.Sprintf("cut off by a change of the %s while it served %s, epoch %d", by, r.Workload, r.Epoch))
		}
	}
}

// fullReach reports whether a run has everything it was given: all its networks and volumes.
func (w *World) fullReach(r Run) bool {
	spec := w.topo.Workloads[r.Workload].Spec
	for _, n := range spec.Networks {
		if !w.runReach(r, w.topo.Networks[n.Network].Spec.VLAN) {
			return false
		}
	}
	for _, v := range spec.Volumes {
		if !w.canWrite(r.Machine, v.Volume) {
			return false
		}
	}
	return true
}

// judgeWrite is S2 for acts: epochs of the writes to a volume never go down, and a holder that another
// one has followed writes no more.
func (w *World) judgeWrite(name string, v *volume, machine, vm, workload string, epoch uint64) {
	if v.spec.Shared {
		return
	}
	h := holder{machine: machine, vm: vm}
	if m := w.machines[machine]; m != nil {
		h.boot = m.boot
	}
	who := place(machine, vm)
	if epoch < v.newest {
		w.violate("S2", "volume "+name, fmt.Sprintf("%s on %s wrote with epoch %d after epoch %d had written", workload, who, epoch, v.newest))
		return
	}
	v.newest = epoch
	if v.past[h] {
		w.violate("S2", "volume "+name, fmt.Sprintf("%s on %s wrote again after another holder of epoch %d", workload, who, epoch))
		return
	}
	if v.last != h && v.last.machine != "" {
		v.past[v.last] = true
	}
	v.last = h
}

func place(machine, vm string) string {
	if vm != "" {
		return machine + " (VM " + vm + ")"
	}
	return machine
}
