package tgtsim

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"rerack.dev/rerack/sanzoning/iscsi"
)

// The texts are those of tgt 1.0.85, down to the spaces. As there, what an initiator calls itself is
// printed as it came.

func (s *Sim) sessionsOf(t *target) []iscsi.Nexus {
	return slices.DeleteFunc(s.iscsi.Sessions(), func(n iscsi.Nexus) bool { return n.Target != t.name })
}

func (s *Sim) sorted() []*target {
	var out []*target
	for _, tid := range slices.Sorted(maps.Keys(s.targets)) {
		out = append(out, s.targets[tid])
	}
	return out
}

func (s *Sim) showDrivers() string {
	var b strings.Builder
	b.WriteString("LLDs:\n    iscsi: ready\n")
	for _, t := range s.sorted() {
		fmt.Fprintf(&b, "        Target %d: %s\n", t.tid, t.name)
	}
	b.WriteString("    iser: error\n")
	return b.String()
}

func (s *Sim) showTargets() string {
	var b strings.Builder
	live := map[string][]iscsi.Nexus{}
	for _, n := range s.iscsi.Sessions() {
		live[n.Target] = append(live[n.Target], n)
	}
	for _, t := range s.sorted() {
		state := "ready"
		if t.offline {
			state = "offline"
		}
		fmt.Fprintf(&b, "Target %d: %s\n    System information:\n        Driver: iscsi\n        State: %s\n", t.tid, t.name, state)
		b.WriteString("    I_T nexus information:\n")
		for _, n := range live[t.name] {
			alias := n.Alias
			if alias == "" {
				alias = "none"
			}
			info := fmt.Sprintf("            Initiator: %s alias: %s\n            Connection: %d\n                IP Address: %s\n",
				n.By.Name, alias, n.CID, n.By.Address)
			fmt.Fprintf(&b, "        I_T nexus: %d\n%s", n.TSIH, info[:min(len(info), 1023)])
		}
		b.WriteString("    LUN information:\n")
		showUnit(&b, t, 0, "controller", "0 MB, Block size: 1", "null", "None")
		for _, lun := range slices.Sorted(maps.Keys(t.units)) {
			d := t.units[lun]
			showUnit(&b, t, lun, "disk", fmt.Sprintf("%d MB, Block size: %d", d.size/1_000_000, iscsi.BlockSize), "rdwr", d.path)
		}
		b.WriteString("    Account information:\n")
		for _, u := range t.accounts {
			fmt.Fprintf(&b, "        %s\n", u)
		}
		b.WriteString("    ACL information:\n")
		for _, r := range t.rules() {
			fmt.Fprintf(&b, "        %s\n", r)
		}
	}
	return b.String()
}

func showUnit(b *strings.Builder, t *target, lun uint16, kind, size, store, path string) {
	fmt.Fprintf(b, "        LUN: %d\n            Type: %s\n            SCSI ID: IET     %04x%04x\n            SCSI SN: beaf%d%d\n"+
		"            Size: %s\n            Online: Yes\n            Removable media: No\n            Prevent removal: No\n"+
		"            Readonly: No\n            SWP: No\n            Thin-provisioning: No\n            Backing store type: %s\n"+
		"            Backing store path: %s\n            Backing store flags: \n", lun, kind, t.tid, lun, t.tid, lun, size, store, path)
}

func (s *Sim) showConnections(t *target) string {
	var b strings.Builder
	for _, n := range s.sessionsOf(t) {
		fmt.Fprintf(&b, "Session: %d\n    Connection: %d\n        Initiator: %s\n        IP Address: %s\n", n.TSIH, n.CID, n.By.Name, n.By.Address)
	}
	return b.String()
}

func (s *Sim) showAccounts() string {
	if len(s.accounts) == 0 {
		return ""
	}
	var b strings.Builder
	b.WriteString("Account list:\n")
	for _, u := range slices.Sorted(maps.Keys(s.accounts)) {
		fmt.Fprintf(&b, "    %s\n", u)
	}
	return b.String()
}
