package workflows

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	bmc "rerack.dev/rerack/bmc/driver"
	fabric "rerack.dev/rerack/fabric/driver"
	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/orchestrator/topology"
)

// symptoms are what can be read of a target that did not come up, at the moment it is given up.
type symptoms struct {
	VM      bool
	SAN     bool // boots from one of its volumes, else from files of the boot server
	Times   map[string]time.Time
	Notes   []state.Note
	Power   *bmc.Reading // nil when its BMC does not answer
	BMC     string       // why it does not
	Ports   []portSymptom
	Volumes []volumeSymptom
}

// portSymptom is one port that a machine is cabled to.
type portSymptom struct {
	Switch, Port string
	Now          fabric.Port
	Untagged     int    // as it should be
	Err          string // why it cannot be read
}

// volumeSymptom is one volume of the workload and what its array says of it.
type volumeSymptom struct {
	Volume, Array, Target string // Target is the array's own name of the volume
	From                  string // the machine's initiator
	Portal, CHAP          string // of iSCSI
	Missing               bool   // the array has no such volume
	Masked                bool   // its mask does not admit the machine
	Session               bool
	Err                   string
}

// finding is one explanation and what to do about it.
type finding struct{ text, next string }

// diagnosis says in one line why a target did not come up: what was waited for, what was found, and what
// to do next. The first finding is the most telling one.
func diagnosis(why string, s symptoms) string {
	found := slices.Concat(s.told(), s.wires(), s.storage(), s.stage())
	if len(found) == 0 {
		return why
	}
	texts := make([]string, len(found))
	next := ""
	for i, f := range found {
		texts[i], next = f.text, cmp.Or(next, f.next)
	}
	out := why + ". " + strings.Join(texts, "; ")
	if next != "" {
		out += " (next: " + next + ")"
	}
	if len(out) > maxReason {
		out = out[:maxReason-3] + "..."
	}
	return out
}

// maxReason bounds what a report says of one try, in bytes.
const maxReason = 1500

// advice is what to do about what a boot server has told, by its topic. Topics are in the order in which they
// explain a failure.
var advice = [...]struct{ topic, next string }{
	{"twin", "find the other machine by its port, and give one of the two another Ethernet address"},
	{"image", "import the image again, and find out who changed its files"},
	{"image-read", "look at the disk that holds the images"},
	{"secret", "look at the server's secrets"},
	{"link", "compare the cable, the port and its VLAN with the topology"},
	{"expired", "raise bootDeadline in the policy"},
	{"loader", "see in its firmware's setup how it boots from the network"},
	{"broken-off", "look for errors at its port, and for memory that is too small for the image"},
	{"token", "find out who has the address in the alarm"},
}

// told is what the boot servers have seen of it.
func (s symptoms) told() (out []finding) {
	for _, a := range advice {
		for _, n := range s.Notes {
			if n.Topic != a.topic {
				continue
			}
			text := n.Text
			if n.Count > 1 {
				text += fmt.Sprintf(" (at least %d times)", n.Count)
			}
			out = append(out, finding{text, a.next})
		}
	}
	return out
}

func (s symptoms) reached(milestone string) bool { return !s.Times[milestone].IsZero() }

// wires is what is wrong with its power and its ports.
func (s symptoms) wires() (out []finding) {
	switch {
	case s.Power != nil && s.Power.State == bmc.PowerOff:
		out = append(out, finding{"its BMC reads off: it was on and went off by itself", "look into its BMC's event log"})
	case s.Power == nil && s.BMC != "":
		out = append(out, finding{"its BMC does not answer: " + s.BMC, ""})
	}
	for _, p := range s.Ports {
		at := p.Switch + " port " + p.Port
		switch {
		case p.Err != "":
			out = append(out, finding{at + " cannot be read: " + p.Err, ""})
		case p.Now.Shut:
			out = append(out, finding{at + " is shut", "find out who shut it"})
		case p.Now.Untagged != p.Untagged && !p.Now.AllVLANs:
			out = append(out, finding{fmt.Sprintf("%s is in VLAN %d and was set to %d", at, p.Now.Untagged, p.Untagged), "find out who else sets it"})
		case p.Now.Link == fabric.LinkDown && !s.reached("dhcp"):
			out = append(out, finding{at + " has no carrier", "look at the cable, and whether it leads where the topology says"})
		}
	}
	return out
}

// storage is what its arrays have seen, once it was told to use them.
func (s symptoms) storage() (out []finding) {
	for _, v := range s.Volumes {
		at := "array " + v.Array
		switch {
		case v.Err != "":
			out = append(out, finding{at + " cannot be read: " + v.Err, ""})
		case v.Missing:
			out = append(out, finding{fmt.Sprintf("%s has no volume %s (%s)", at, v.Target, v.Volume), "compare the volume's declaration with the array"})
		case v.Masked:
			out = append(out, finding{fmt.Sprintf("the mask of %s on %s does not admit %s", v.Volume, at, v.From), "find out who else sets it"})
		case !v.Session && (s.SAN && s.reached("script") || s.reached("phone-home")):
			f := finding{text: fmt.Sprintf("%s has no session of %s to %s, whose mask admits it", at, v.From, v.Volume)}
			if v.Portal != "" {
				f.text += ": it cannot reach portal " + v.Portal
				f.next = "look at its console (iPXE says 410d613c for a wrong secret, 2c0d603b for a mask)"
				if v.CHAP != "" {
					f.text += ", or the secret " + v.CHAP + " is not the one that the array asks for (CHAP)"
				}
			}
			out = append(out, f)
		}
	}
	return out
}

// stage is how far it came, by what it fetched last.
func (s symptoms) stage() []finding {
	again := uint32(0)
	for _, n := range s.Notes {
		if n.Topic == "script" {
			again = n.Count
		}
	}
	one := func(text, next string) []finding { return []finding{{text, next}} }
	switch {
	case s.reached("phone-home"):
		return nil // it runs; what is missing now is told by its health check
	case s.reached("kernel"):
		return one("it fetched its kernel in whole, and nothing was heard of it after that", "look at its console: the kernel stops, or finds no way to the boot server")
	case s.reached("script") && again > 0 && s.SAN:
		return one(fmt.Sprintf("it fetched its boot script at least %d times: it does not get on with its volume", again), "look at its console")
	case s.reached("script") && again > 0:
		return one(fmt.Sprintf("it fetched its boot script at least %d times and never its kernel in whole", again), "look at its console")
	case s.reached("script") && s.SAN:
		return one("it fetched its boot script, and the system on its volume was not heard of", "look at its console")
	case s.reached("script"):
		return one("it fetched its boot script and never its kernel in whole", "look at its console")
	case s.reached("dhcp") || s.reached("bootfile"):
		return one("it took its address and never fetched its boot script", "look whether the boot server can be reached by HTTP from its network")
	case len(s.told()) == 0 && s.VM:
		return one("its boot server was never asked for an address", "look at the VM's console on its host")
	case len(s.told()) == 0:
		return one("no boot server was ever asked for an address by it", "look at its console: it hangs before its firmware boots from the network, or that is turned off there")
	}
	return nil
}

// volumeSymptomsOf is what is known of a workload's volumes before the arrays are asked.
func volumeSymptomsOf(t *topology.Topology, workload, machine string) (out []volumeSymptom) {
	m := t.Machines[machine].Spec
	for _, use := range t.Workloads[workload].Spec.Volumes {
		v := t.Volumes[use.Volume]
		s := volumeSymptom{Volume: use.Volume, Array: v.Spec.Array, Target: arrayName(v)}
		if v.Spec.Protocol == topology.ISCSI {
			s.From, s.CHAP = m.StorageAddress.String(), v.Spec.CHAP
			if p := t.Arrays[v.Spec.Array].Spec.Portals; len(p) > 0 {
				s.Portal = p[0]
			}
		} else if len(m.HBAs) > 0 {
			s.From = string(m.HBAs[0].WWPN)
		}
		out = append(out, s)
	}
	return out
}
