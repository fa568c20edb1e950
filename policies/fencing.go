package policies

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"rerack.dev/rerack/orchestrator/topology"
)

// Needs says which fences a workload makes compulsory on the machine it leaves. Machine is the
// workload's home; the caller sets it to where the workload really ran. An undeclared workload needs
// every fence: what is not known cannot be ruled out.
func Needs(t *topology.Topology, workload string) FenceNeeds {
	w, known := t.Workloads[workload]
	return FenceNeeds{
		Machine:  w.Spec.Home,
		Workload: workload,
		Network:  !known || len(w.Spec.Networks) > 0,
		Storage:  !known || len(w.Spec.Volumes) > 0,
	}
}

// Fenced decides whether the former holder can no longer act (rule F2): at least two kinds of fence
// confirmed by reading back, one of them not needing the machine's power, the network fence when a
// network identity moves, and the storage fence when volumes move.
//
// A power fence is confirmed by any one witness (BMC or every PDU outlet); network and storage count
// only when nothing of that kind is left open. A workload without any volume has no storage to protect:
// then that kind counts as confirmed by declaration, but never alone.
func Fenced(needs FenceNeeds, got []Fence) FenceVerdict {
	v := FenceVerdict{Machine: needs.Machine}
	confirmed, open := map[FenceKind]bool{}, map[FenceKind][]string{}
	for _, f := range got {
		if f.Confirmed {
			confirmed[f.Kind] = true
		} else {
			open[f.Kind] = append(open[f.Kind], f.Detail)
		}
	}
	for _, k := range [...]FenceKind{FenceNetwork, FenceStorage} {
		confirmed[k] = confirmed[k] && len(open[k]) == 0
	}
	declared := !needs.Storage && !confirmed[FenceStorage]

	var have []string
	for _, k := range [...]FenceKind{FencePower, FenceNetwork, FenceStorage} {
		if confirmed[k] {
			have = append(have, string(k))
		}
	}
	count := len(have)
	if declared {
		count++
		have = append(have, "storage by declaration (no volume exists to reach)")
	}
	lack := func(k FenceKind, why string) {
		line := fmt.Sprintf("%s fence: %s", k, why)
		if details := slices.DeleteFunc(slices.Clone(open[k]), func(s string) bool { return s == "" }); len(details) > 0 {
			slices.Sort(details)
			line += " (" + strings.Join(slices.Compact(details), "; ") + ")"
		}
		v.Missing = append(v.Missing, line)
	}
	if needs.Network && !confirmed[FenceNetwork] {
		lack(FenceNetwork, "compulsory, because a network identity moves")
	}
	if needs.Storage && !confirmed[FenceStorage] {
		lack(FenceStorage, "compulsory, because volumes move")
	}
	if len(v.Missing) == 0 && count < 2 {
		// One kind is confirmed at most: the compulsory one, or none beside the declaration.
		lack(FencePower, "a second kind is needed, off as read from the BMC or every PDU outlet off")
	}
	v.Met = len(v.Missing) == 0
	switch {
	case v.Met:
		v.Reason = fmt.Sprintf("%s is fenced: %s", needs.Machine, strings.Join(have, " and "))
	case len(have) == 0:
		v.Reason = fmt.Sprintf("%s is not fenced: nothing is confirmed", needs.Machine)
	default:
		v.Reason = fmt.Sprintf("%s is not fenced: only %s is confirmed", needs.Machine, strings.Join(have, " and "))
	}
	return v
}

// PowerState is a reading of a machine's power, in the BMC layer's words.
type PowerState string

// Everything but PowerOff, known or not, counts as not off.
const (
	PowerUnknown  PowerState = "unknown"
	PowerOff      PowerState = "off"
	PowerOn       PowerState = "on"
	PowerChanging PowerState = "changing"
)

// PowerSample is one power reading.
type PowerSample struct {
	State PowerState `json:"state"`
	At    time.Time  `json:"at"`
}

// Defaults of rule F3.
const (
	defaultOffReadings = 3
	defaultOffInterval = 5 * time.Second
)

// OffConfirmed applies rule F3: the last n readings say off, at least gap apart, with nothing else in
// between, and where there is a second witness (PDU load, carrier, FC login) it agrees. The witness's
// SignDown agrees, SignUp contradicts, SignUnknown means that there is none. A non-positive n or gap
// means the default, 3 and 5 s. Readings may come in any order. The sentence says why or why not.
func OffConfirmed(readings []PowerSample, n int, gap time.Duration, witness Sign) (bool, string) {
	if n <= 0 {
		n = defaultOffReadings
	}
	if gap <= 0 {
		gap = defaultOffInterval
	}
	if len(readings) == 0 {
		return false, "no power reading"
	}
	newest := slices.Clone(readings)
	slices.SortStableFunc(newest, func(a, b PowerSample) int {
		// Of readings at one instant the one that is not off comes first, whatever their order was.
		return cmp.Or(b.At.Compare(a.At), cmp.Compare(offRank(a), offRank(b)))
	})
	if s := newest[0].State; s != PowerOff {
		return false, fmt.Sprintf("the last reading is %s, not off", s)
	}
	count, last := 0, time.Time{}
	for _, r := range newest {
		if r.State != PowerOff || r.At.IsZero() {
			break
		}
		if count == 0 || last.Sub(r.At) >= gap {
			count, last = count+1, r.At
		}
	}
	switch {
	case count < n:
		return false, fmt.Sprintf("%d of %d consecutive off readings at least %s apart", count, n, gap)
	case witness == SignUp:
		return false, fmt.Sprintf("%d off readings, but a second witness sees the machine running", count)
	case witness == SignDown:
		return true, fmt.Sprintf("%d consecutive off readings at least %s apart, and a second witness agrees", count, gap)
	default:
		return true, fmt.Sprintf("%d consecutive off readings at least %s apart, no second witness", count, gap)
	}
}

func offRank(r PowerSample) int {
	if r.State == PowerOff {
		return 1
	}
	return 0
}
