package workflows

import (
	"fmt"
	"strings"

	bmc "rerack.dev/rerack/bmc/driver"
	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/orchestrator/topology"
)

// unusable says why a machine is no target, or nothing. Silence of its BMC is a reason: power that
// cannot be read cannot be set.
func unusable(rec state.Machine, run string, m topology.Machine, power bmc.Reading) string {
	switch {
	case m.Spec.Maintenance:
		return "it is in maintenance"
	case rec.Fence != nil:
		return "it is fenced by " + rec.Fence.Run
	case rec.Suspect != nil:
		return "it is suspect: " + rec.Suspect.Reason
	case rec.Claim != nil && rec.Claim.Run != run:
		return "run " + rec.Claim.Run + " has claimed it"
	case m.Spec.Existing(): // it answers for itself
	case power.State == bmc.PowerUnknown || power.State == "":
		return strings.TrimSuffix(bmcSilent+": "+power.Detail, ": ")
	case rec.Host != nil && power.State != bmc.PowerOn:
		return "it is a host and not powered on"
	}
	return ""
}

// bmcSilent begins what is said of a machine whose power cannot be read.
const bmcSilent = "its BMC does not answer as it should"

// passedOver is the part of a plan's summary that names machines which could not be considered.
func passedOver(machines map[string]string) string {
	out := ""
	for i, m := range sortedKeys(machines) {
		if i == maxPassedOver {
			return out + fmt.Sprintf("; and %d more", len(machines)-i)
		}
		out += "; passed over " + m + ": " + machines[m]
	}
	return out
}

const maxPassedOver = 3
