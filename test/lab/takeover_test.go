package lab_test

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	bmcdriver "rerack.dev/rerack/bmc/driver"
	"rerack.dev/rerack/fabric/driver"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/pxe"
	"rerack.dev/rerack/pxe/ipxe"
	san "rerack.dev/rerack/sanzoning/driver"
	"rerack.dev/rerack/sanzoning/ontap"
	"rerack.dev/rerack/sanzoning/tgt"
	"rerack.dev/rerack/test/lab"
)

func tgtOf(t testing.TB, l *lab.Lab, name string) *tgt.Array {
	t.Helper()
	a, err := tgt.New(tgt.Config{Socket: strings.TrimPrefix(l.Topology().Arrays[name].Spec.Address, "unix:"), LoginWindow: time.Millisecond})
	must(t, err)
	return a
}

func ontapOf(t testing.TB, l *lab.Lab, name string) *ontap.Array {
	t.Helper()
	spec := l.Topology().Arrays[name].Spec
	a, err := ontap.New(ontap.Config{Name: name, URL: spec.Address, TLS: pinned(spec.Fingerprint),
		Login: func(context.Context) (string, string, error) {
			c := l.Secrets()[spec.Credentials]
			return c.Username, c.Password, nil
		}})
	must(t, err)
	t.Cleanup(func() { must(t, a.Close()) })
	return a
}

// pinned trusts one certificate by its fingerprint.
func pinned(fingerprint string) *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true, //nolint:gosec // the fingerprint is checked instead
		VerifyPeerCertificate: func(raw [][]byte, _ [][]*x509.Certificate) error {
			if sum := sha256.Sum256(raw[0]); hex.EncodeToString(sum[:]) != fingerprint {
				return errors.New("another certificate")
			}
			return nil
		}}
}

// TestTakeoverByHand does with the product's drivers what a recovery does, for one workload on iSCSI:
// rack-a burns, mail1 moves from a05 to b01, and the zombies of rack-a come back to nothing.
func TestTakeoverByHand(t *testing.T) {
	topo, dir := story(t), t.TempDir()
	l := start(t, topo, func(c *lab.Config) { c.Dir = dir })
	p, ctx := serveBoot(t, l, dir), t.Context()
	eventually(t, "all serve", func() bool { return l.Status().Serving == len(topo.Workloads) })
	eventually(t, "mail1 writes", func() bool { log, _ := l.World().Log("mail1"); return len(log) > 3 })
	if log, _ := l.World().Log("mail1"); log[0].Machine != "a05" || log[0].Workload != "mail1" || log[0].Epoch != 1 {
		t.Errorf("first write %+v", log[0])
	}
	must(t, l.Burn("rack-a"))

	// Fence: the volume is taken from everybody, the rack's uplinks are closed at their far ends.
	array, mail := tgtOf(t, l, "iscsi1"), topo.Volumes["mail1"].Spec
	mask := func(epoch uint64, who ...string) {
		t.Helper()
		_, err := array.Apply(ctx, san.MaskChange{Owner: "r/1", Masks: []san.Mask{{Volume: string(mail.Target), Initiators: who, Epoch: epoch}}})
		must(t, err)
	}
	mask(2)
	for _, spine := range []string{"spine1", "spine2"} {
		_, err := switchOf(t, l, spine).Apply(ctx, driver.Change{Owner: "r/1", Settings: []driver.Setting{{Port: "p1", Shut: true, Epoch: 2}}})
		must(t, err)
	}

	// Rewire and boot.
	b01 := topo.Machines["b01"].Spec
	nic := b01.NICs[0]
	_, err := switchOf(t, l, nic.Switch).Apply(ctx, driver.Change{Owner: "r/1", Settings: []driver.Setting{
		{Port: nic.Port, Untagged: topo.Networks["app"].Spec.VLAN, Epoch: 2}}})
	must(t, err)
	mask(2, b01.StorageAddress.String())
	p.boots(t, l, "b01", string(nic.MAC), "10.1.20.13/24", "linux-x86", 2, kernelParams(l, "mail1", 2)...)
	bmc := bmcOf(t, l, "b01")
	_, _, err = bmc.EnsureBoot(ctx, bmcdriver.BootOverride{Device: bmcdriver.BootPXE, Once: true})
	must(t, err)
	must(t, bmc.SetPower(ctx, bmcdriver.On))
	p.reached(t, "b01", pxe.KindHealthy)
	eventually(t, "mail1 writes from b01", func() bool {
		log, _ := l.World().Log("mail1")
		last := log[len(log)-1]
		return last.Machine == "b01" && last.Epoch == 2
	})
	if status := probe(t, l, "10.1.20.13:80"); status != 200 {
		t.Errorf("mail1 answers %d", status)
	}
	clean(t, l)

	// Power comes back: the old mail1 starts with its old identity and reaches nothing.
	must(t, l.RestorePower("rack-a"))
	eventually(t, "the old mail1 waits for its volume", func() bool { return phase(l, "a05") == "volumes" })
	if h := l.World().Holders("mail1"); len(h) != 2 {
		t.Errorf("holders %+v", h)
	}
	sessions, err := array.Sessions(ctx)
	must(t, err)
	for _, s := range sessions {
		if s.Volume == string(mail.Target) && s.Initiator != b01.StorageAddress.String() {
			t.Errorf("a fenced machine has a session: %+v", s)
		}
	}
	_, totals := l.World().Log("mail1")
	if len(totals) != 2 || totals[0].Epoch != 1 || totals[1].Epoch != 2 {
		t.Errorf("totals %+v", totals)
	}
	clean(t, l)
}

// kernelParams are what the product puts on a workload's command line.
func kernelParams(l *lab.Lab, workload string, epoch uint64) []ipxe.Param {
	topo := l.Topology()
	w := topo.Workloads[workload].Spec
	out := []ipxe.Param{{Key: "rerack.workload", Value: workload}, {Key: "rerack.epoch", Value: fmt.Sprint(epoch)}}
	if w.InitiatorIQN != "" {
		out = append(out, ipxe.Param{Key: "rerack.initiator", Value: string(w.InitiatorIQN)})
	}
	for i, use := range w.Volumes {
		v := topo.Volumes[use.Volume].Spec
		a := topo.Arrays[v.Array].Spec
		value := ""
		if v.Protocol == topology.ISCSI {
			value = fmt.Sprintf("iscsi:%s:%s:%d", a.Portals[0], v.Target, v.LUN)
		} else {
			value = fmt.Sprintf("fc:%s:%d:%s", a.Targets[0].WWPN, v.LUN, use.Volume)
		}
		out = append(out, ipxe.Param{Key: fmt.Sprintf("rerack.volume.%d", i), Value: value})
	}
	return out
}

// TestUnfencedTakeoverIsFound leaves the fence out: the checker must say so.
func TestUnfencedTakeoverIsFound(t *testing.T) {
	topo := story(t)
	l := start(t, topo, nil)
	ctx := t.Context()
	eventually(t, "db1 writes", func() bool { log, _ := l.World().Log("db1"); return len(log) > 0 })
	array := ontapOf(t, l, "fc1")
	b01 := topo.Machines["b01"].Spec
	m := san.Mask{Volume: "/vol/v1/db1", Epoch: 2}
	for _, mach := range []string{"a01", "b01"} {
		for _, h := range topo.Machines[mach].Spec.HBAs {
			m.Initiators = append(m.Initiators, string(h.WWPN))
		}
	}
	_, err := array.Apply(ctx, san.MaskChange{Owner: "test", Masks: []san.Mask{m}})
	must(t, err)
	masks, err := array.Masks(ctx)
	must(t, err)
	if len(masks) == 0 || len(b01.HBAs) == 0 {
		t.Fatal("no masks")
	}
	clean(t, l) // masked, but not zoned
	zones := l.World().Zones("fab-a")
	for i := range zones {
		if zones[i].Name == "vol-db1" {
			zones[i].Members = append(zones[i].Members, string(b01.HBAs[0].WWPN))
		}
	}
	must(t, l.World().SetZones("fab-a", zones))
	must(t, l.Power("b01", true))
	life, on := l.World().Life("b01")
	if !on {
		t.Fatal("b01 is off")
	}
	must(t, l.World().Start(life, "", "db2", 1))
	found := map[string]bool{}
	for _, v := range l.CheckInvariants().Violations {
		found[v.Rule+" "+v.Subject] = true
	}
	if !found["S2 volume db1"] {
		t.Errorf("two writers of db1 were not found: %v", found)
	}
}
