package e2e

import (
	"strings"
	"testing"

	"rerack.dev/rerack/orchestrator/api"
)

// Devices misbehave while the rack's workloads come back. What a repetition heals leaves no trace; a machine that
// does not do as it is told is replaced, and the report says by its name why.
func TestDevicesThatFail(t *testing.T) {
	for name, tt := range map[string]struct {
		phase  string // in which the faults begin
		faults []string
		tried  []string // what the report says was tried in vain
		all    bool     // all must come back
	}{
		"answers are lost and come late": {phase: "fence", all: true, faults: []string{"switch spine1 lose-reply 1", "switch spine2 delay 300ms",
			"fabric fab-a drop-reply 1", "fabric fab-b refuse 1", "array iscsi1 drop-reply 1", "array fc1 fail-write 1"}},
		"a switch and machines fail": {phase: "plan", faults: []string{"switch tor-b refuse 1", "bmc b01 drop-power-on 1", "machine c01 no-boot", "machine b05 slow 2s"},
			tried: []string{"c01"}},
		// b01 is on and says so itself, whatever its BMC does not say.
		"BMCs hang": {phase: "fence", faults: []string{"bmc b03 hang", "bmc b01 hang-after-press"}, tried: []string{"b03"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := watched(t, edited(t, nil, "bootDeadline: 60s", "bootDeadline: 12s", "deviceLimit: 60s", "deviceLimit: 15s"))
			e.run("lab", "burn", "rack-a")
			e.untilPhase(tt.phase)
			for _, f := range tt.faults {
				w := append(strings.Fields(f), "")
				if err := e.world.Fault(t.Context(), w[0], w[1], w[2], w[3]); err != nil {
					t.Fatal(err)
				}
			}
			v, code := e.wait("rack-a")
			e.checkNamed(v)
			if tt.all && (code != 0 || v.Report.Recovered != 20) {
				t.Errorf("the run ends %s (%d), %d recovered: %s", v.State, code, v.Report.Recovered, v.Reason)
			}
			report := e.run("recovery", "show", v.ID)
			for _, m := range tt.tried {
				if !strings.Contains(report, "on "+m+":") {
					t.Errorf("the report does not say that %s was tried", m)
				}
			}
			t.Log(report)
			e.checkInvariants()
		})
	}
}

// checkNamed fails the test unless the run ended, and says of all that did not come back why.
func (e *evening) checkNamed(v api.RunView) {
	e.t.Helper()
	if !v.State.Ended() || v.State == "failed" {
		e.t.Errorf("the run is %s: %s", v.State, v.Reason)
	}
	for _, r := range v.Results {
		if !r.Host && r.State != "healthy" && r.Reason == "" {
			e.t.Errorf("%s is %s, and the report does not say why", r.Name, r.State)
		}
	}
}
