package tgt

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

const described = `Target 1: iqn.2026-01.x:a
    System information:
        Driver: iscsi
        State: ready
    I_T nexus information:
        I_T nexus: 3
            Initiator: %s alias: none
            Connection: 0
                IP Address: 10.0.0.9
    LUN information:
        LUN: 0
            Type: controller
    Account information:
        rerack
    ACL information:
        10.0.0.9
        240.0.0.7
Target 2: iqn.2026-01.x:b
    System information:
        Driver: iscsi
        State: ready
    I_T nexus information:
    LUN information:
    Account information:
    ACL information:
        ALL
        iqn.2026-01.x:host
`

func known() map[int32]string { return map[int32]string{1: "iqn.2026-01.x:a", 2: "iqn.2026-01.x:b"} }

func TestParseTargets(t *testing.T) {
	all, err := parseTargets(fmt.Sprintf(described, "iqn.2026-01.x:host"), known())
	if err != nil {
		t.Fatal(err)
	}
	a, b := all["iqn.2026-01.x:a"], all["iqn.2026-01.x:b"]
	if a.tid != 1 || a.driver != "iscsi" || !slices.Equal(a.nexus, []uint64{3}) || !slices.Equal(a.rules, []string{"10.0.0.9", "240.0.0.7"}) {
		t.Fatalf("%+v", a)
	}
	if m := a.mask(); m.Epoch != 7 || !slices.Equal(m.Initiators, []string{"10.0.0.9"}) {
		t.Fatalf("%+v", m)
	}
	if m := b.mask(); m.Epoch != 0 || !slices.Equal(m.Initiators, []string{"ALL", "iqn.2026-01.x:host"}) {
		t.Fatalf("%+v: a target open to all looks fenced", m)
	}
}

// TestHostileNames: tgtd prints an initiator's name as it came, line ends included.
func TestHostileNames(t *testing.T) {
	for name, evil := range map[string]string{
		"ends the session list": "x\n    LUN information:",
		"another target":        "x\n    LUN information:\n    Account information:\n    ACL information:\nTarget 9: iqn.2026-01.x:z\n    System information:\n    I_T nexus information:",
		"a known target":        "x\n    LUN information:\n    Account information:\n    ACL information:\nTarget 2: iqn.2026-01.x:b\n    System information:\n    I_T nexus information:",
		"an own access list":    "x\n    LUN information:\n    Account information:\n    ACL information:\n        240.0.0.200",
		"a line of its own":     "x\nhello",
	} {
		if got, err := parseTargets(fmt.Sprintf(described, evil), known()); err == nil {
			t.Errorf("%s: was believed: %+v", name, got)
		}
	}
}

func TestHostileConnections(t *testing.T) {
	const real = "Session: 3\n    Connection: 0\n        Initiator: %s\n        IP Address: 10.0.0.9\n"
	allowed := netip.MustParseAddr("10.0.0.1")
	for name, evil := range map[string]string{
		"an allowed address":  "x\n        IP Address: 10.0.0.1",
		"an allowed session":  "x\n        IP Address: 10.0.0.1\nSession: 8\n    Connection: 0\n        Initiator: y",
		"another name":        "x\n        Initiator: y",
		"a line of its own":   "x\nhello",
		"another connection":  "x\n    Connection: 7",
		"nothing but spaces":  " ",
		"the plain old truth": "iqn.2026-01.x:host",
	} {
		conns, err := parseConnections(fmt.Sprintf(real, evil), []uint64{3})
		if err != nil {
			continue
		}
		if !slices.ContainsFunc(conns, func(c connection) bool { return c.address != allowed }) {
			t.Errorf("%s: the connection passes for one of %v: %+v", name, allowed, conns)
		}
	}
	conns, err := parseConnections("", []uint64{5})
	if err != nil || len(conns) != 1 || conns[0].address.IsValid() {
		t.Fatalf("a session that is not listed is forgotten: %+v, %v", conns, err)
	}
}

func TestRules(t *testing.T) {
	for _, epoch := range []uint64{1, 255, 256, 1 << 20, MaxEpoch} {
		if r := ParseRules([]string{marker(epoch)}); r.Epoch != epoch || len(r.Loose)+len(r.Addresses) != 0 {
			t.Errorf("epoch %d: %s reads %+v", epoch, marker(epoch), r)
		}
	}
	r := ParseRules([]string{"240.0.0.3", "10.0.0.1", "240.0.0.2", "240.0.0.0", "fd00::1"})
	if r.Epoch != 3 || !r.Unsettled || len(r.Markers) != 2 || len(r.Addresses) != 2 || len(r.Loose) != 0 {
		t.Errorf("%+v", r)
	}
	for _, rule := range []string{"ALL", "10.0.0.0/8", "iqn.x:y", "010.0.0.1", "10.1", "0x0a000001", "[fd00::1]", "FD00::1", "::ffff:10.0.0.1", "255.255.255.255", "fe80::1%eth0", ""} {
		if r := ParseRules([]string{rule}); len(r.Loose) != 1 {
			t.Errorf("%q passes for a plain address: %+v", rule, r)
		}
		if _, err := parseInitiator(rule); err == nil {
			t.Errorf("%q may be granted", rule)
		}
	}
	for _, s := range []string{"240.0.0.1", "0.0.0.0", "224.0.0.1", "::", "21:11:11:25:b5:11:22:33"} {
		if _, err := parseInitiator(s); err == nil {
			t.Errorf("%q may be granted", s)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(fmt.Sprintf(described, "iqn.x:y"))
	f.Add("LLDs:\n    iscsi: ready\n        Target 1: iqn.2026-01.x:a\n")
	f.Add("Session: 3\n    Connection: 0\n        Initiator: x\n        IP Address: 10.0.0.9\n")
	f.Fuzz(func(t *testing.T, text string) {
		if all, err := parseTargets(text, known()); err == nil {
			if len(all) != 2 {
				t.Fatalf("%d targets out of %q", len(all), text)
			}
			for name, got := range all {
				if known()[got.tid] != name || len(got.rules) > strings.Count(text, "\n")+1 {
					t.Fatalf("%+v out of %q", got, text)
				}
				got.mask()
			}
		}
		if known, err := parseDrivers(text); err == nil {
			_, _ = parseTargets(text, known)
		}
		if conns, err := parseConnections(text, []uint64{1}); err == nil && len(conns) == 0 {
			t.Fatal("session 1 was forgotten")
		}
	})
}
