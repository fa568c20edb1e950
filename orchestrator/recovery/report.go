package recovery

import (
	"sort"
	"time"

	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/policies"
)

// Report is a run as figures.
type Report struct {
	Recovered int           `json:"recovered"`
	Of        int           `json:"of"`
	BareMetal int           `json:"bareMetal"`
	VMs       int           `json:"vms"`
	Hosts     int           `json:"hosts"`
	Detection time.Duration `json:"detectionNs" doc:"First sign of the failure, or the request if that came first, to the verdict"`
	Total     time.Duration `json:"totalNs" doc:"Verdict to end"`
	Restored  time.Duration `json:"restoredNs" doc:"Verdict to the last workload that became healthy; what follows is waiting for the power of machines that do not answer"`
	Hardware  time.Duration `json:"hardwareNs" doc:"Longest time in firmware that no order of starting could save: power-on to the first DHCP packet of a machine, and for a VM that of its host before it"`
	Own       time.Duration `json:"ownNs" doc:"Restored less Hardware: what the software took"`
}

// Summarize works the figures out.
func Summarize(r state.Run, results []state.Result) Report {
	out := Report{Of: len(r.Workloads)}
	by := map[string]state.Result{}
	hosts := map[string]state.Result{}
	for _, res := range results {
		if res.Host {
			hosts[res.Where.Machine] = res
			if res.State == "healthy" {
				out.Hosts++
			}
			continue
		}
		by[res.Name] = res
		if res.State != "healthy" {
			continue
		}
		out.Recovered++
		if res.Where.VM {
			out.VMs++
		} else {
			out.BareMetal++
		}
	}
	for _, p := range r.Phases {
		if p.Name == "verdict" && !p.End.IsZero() {
			out.Detection = p.End.Sub(firstSign(r))
			if !r.Ended.IsZero() {
				out.Total = r.Ended.Sub(p.End)
			}
		}
	}
	for _, res := range by {
		d := firmwareTime(res)
		if res.Where.VM {
			d += firmwareTime(hosts[res.Where.Machine])
		}
		out.Hardware = max(out.Hardware, d)
	}
	if out.Total > 0 {
		out.Restored = out.Total
		if last := lastHealthy(by); !last.IsZero() {
			out.Restored = out.Total - r.Ended.Sub(last)
		}
	}
	out.Own = max(out.Restored-out.Hardware, 0)
	return out
}

func lastHealthy(results map[string]state.Result) (last time.Time) {
	for _, r := range results {
		if at := r.Times["healthy"]; r.State == "healthy" && at.After(last) {
			last = at
		}
	}
	return last
}

// firstSign is since when a BMC or a link of the verdict's evidence has been down, or the request if
// that came first.
func firstSign(r state.Run) time.Time {
	first := r.Requested
	if r.Verdict == nil || r.Verdict.State != policies.VerdictBurned {
		return first
	}
	for _, e := range r.Verdict.Used {
		if e.Sign == policies.SignDown && (e.Kind == policies.EvidenceLink || e.Kind == policies.EvidenceBMC) && e.Since.Before(first) {
			first = e.Since
		}
	}
	return first
}

func firmwareTime(r state.Result) time.Duration {
	on, dhcp := r.Times["power-on"], r.Times["dhcp"]
	if on.IsZero() || dhcp.Before(on) {
		return 0
	}
	return dhcp.Sub(on)
}

// Order sorts results as people read them: Hosts first, then by priority and name.
func Order(results []state.Result) []state.Result {
	out := append([]state.Result(nil), results...)
	sort.SliceStable(out, func(i, j int) bool {
		a, b := out[i], out[j]
		if a.Host != b.Host {
			return a.Host
		}
		if a.Priority != b.Priority {
			return a.Priority > b.Priority
		}
		return a.Name < b.Name
	})
	return out
}
