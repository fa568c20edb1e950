package lab_test

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	bmcdriver "rerack.dev/rerack/bmc/driver"
	"rerack.dev/rerack/fabric/driver"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/pxe"
	"rerack.dev/rerack/pxe/ipxe"
	"rerack.dev/rerack/sanzoning/brocade"
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

func fabricOf(t testing.TB, l *lab.Lab, name string) *brocade.Fabric {
	t.Helper()
	spec := l.Topology().Fabrics[name].Spec
	f, err := brocade.New(brocade.Config{URL: spec.Address, TLS: pinned(spec.Fingerprint), Login: func(context.Context) (string, string, error) {
		c := l.Secrets()[spec.Credentials]
		return c.Username, c.Password, nil
	}})
	must(t, err)
	return f
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

// move is one workload on its way to another machine.
type move struct{ workload, from, to, address string }

// grant gives a move's volume to one machine, or to nobody, on all devices between them.
func (m move) grant(t testing.TB, l *lab.Lab, epoch uint64, machine string) {
	t.Helper()
	ctx, topo := t.Context(), l.Topology()
	name := topo.Workloads[m.workload].Spec.Volumes[0].Volume
	v := topo.Volumes[name].Spec
	mask := san.Mask{Initiators: []string{}, Epoch: epoch}
	to := topo.Machines[machine].Spec // the zero machine for nobody
	if v.Protocol == topology.ISCSI {
		mask.Volume = string(v.Target)
		if machine != "" {
			mask.Initiators = append(mask.Initiators, to.StorageAddress.String())
		}
		_, err := tgtOf(t, l, v.Array).Apply(ctx, san.MaskChange{Owner: "r/1", Masks: []san.Mask{mask}})
		must(t, err)
		return
	}
	mask.Volume = v.ArrayRef
	for _, target := range topo.Arrays[v.Array].Spec.Targets {
		z := san.Zone{Name: "vol-" + name, Targets: []string{string(target.WWPN)}, Initiators: []string{}, Epoch: epoch}
		for _, h := range to.HBAs {
			if h.Fabric == target.Fabric {
				z.Initiators = append(z.Initiators, string(h.WWPN))
			}
		}
		mask.Initiators = append(mask.Initiators, z.Initiators...)
		_, err := fabricOf(t, l, target.Fabric).Apply(ctx, san.ZoneChange{Owner: "r/1", Zones: []san.Zone{z}})
		must(t, err)
	}
	_, err := ontapOf(t, l, v.Array).Apply(ctx, san.MaskChange{Owner: "r/1", Masks: []san.Mask{mask}})
	must(t, err)
}

// TestTakeoverByHand does with the product's drivers what a recovery does, for a workload on iSCSI and
// one on FC: rack-a burns, both start elsewhere, and the zombies of rack-a come back to nothing.
func TestTakeoverByHand(t *testing.T) {
	topo, dir := story(t), t.TempDir()
	l := start(t, topo, func(c *lab.Config) { c.Dir = dir })
	p, ctx := serveBoot(t, l, dir), t.Context()
	moves := []move{{"mail1", "a05", "b01", "10.1.20.13"}, {"db1", "a01", "b02", "10.1.30.11"}}
	eventually(t, "all serve", func() bool { return l.Status().Serving == len(topo.Workloads) })
	for _, m := range moves {
		eventually(t, m.workload+" writes", func() bool { log, _ := l.World().Log(m.workload); return len(log) > 3 })
		if log, _ := l.World().Log(m.workload); log[0].Machine != m.from || log[0].Workload != m.workload || log[0].Epoch != 1 {
			t.Errorf("first write %+v", log[0])
		}
	}
	must(t, l.Burn("rack-a"))

	// Fence: the volumes are taken from everybody, the rack's uplinks are closed at their far ends.
	for _, m := range moves {
		m.grant(t, l, 2, "")
	}
	for _, spine := range []string{"spine1", "spine2"} {
		_, err := switchOf(t, l, spine).Apply(ctx, driver.Change{Owner: "r/1", Settings: []driver.Setting{{Port: "p1", Shut: true, Epoch: 2}}})
		must(t, err)
	}
	for _, m := range moves {
		m.grant(t, l, 2, m.to)
		nic, at := topo.Machines[m.to].Spec.NICs[0], topo.Workloads[m.workload].Spec.Networks[0]
		vlan := topo.Networks[at.Network].Spec.VLAN
		_, err := switchOf(t, l, nic.Switch).Apply(ctx, driver.Change{Owner: "r/1", Settings: []driver.Setting{{Port: nic.Port, Untagged: vlan, Epoch: 2}}})
		must(t, err)
		p.boots(t, l, m.to, string(nic.MAC), m.address+"/24", "linux-x86", 2, kernelParams(l, m.workload, 2)...)
		bmc := bmcOf(t, l, m.to)
		_, _, err = bmc.EnsureBoot(ctx, bmcdriver.BootOverride{Device: bmcdriver.BootPXE, Once: true})
		must(t, err)
		must(t, bmc.SetPower(ctx, bmcdriver.On))
		p.reached(t, m.to, pxe.KindHealthy)
		eventually(t, m.workload+" writes from "+m.to, func() bool {
			log, _ := l.World().Log(m.workload)
			last := log[len(log)-1]
			return last.Machine == m.to && last.Epoch == 2
		})
		if status := probe(t, l, m.address+":80"); status != 200 {
			t.Errorf("%s answers %d", m.workload, status)
		}
	}
	clean(t, l)

	// Power comes back: the old systems start with their old identities and reach nothing.
	must(t, l.RestorePower("rack-a"))
	for _, m := range moves {
		eventually(t, "the old "+m.workload+" waits for its volume", func() bool { return phase(l, m.from) == "volumes" })
		if h := l.World().Holders(m.workload); len(h) != 2 {
			t.Errorf("holders %+v", h)
		}
		if _, totals := l.World().Log(m.workload); len(totals) != 2 || totals[0].Epoch != 1 || totals[1].Epoch != 2 {
			t.Errorf("totals %+v", totals)
		}
	}
	sessions, err := tgtOf(t, l, "iscsi1").Sessions(ctx)
	must(t, err)
	for _, s := range sessions {
		if s.Volume == string(topo.Volumes["mail1"].Spec.Target) && s.Initiator != topo.Machines["b01"].Spec.StorageAddress.String() {
			t.Errorf("a fenced machine has a session: %+v", s)
		}
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
	fab := fabricOf(t, l, "fab-a")
	logins, err := fab.Logins(ctx)
	must(t, err)
	a01 := string(topo.Machines["a01"].Spec.HBAs[0].WWPN)
	if !slices.Contains(logins, a01) || slices.Contains(logins, string(b01.HBAs[0].WWPN)) {
		t.Errorf("logins %v", logins)
	}
	_, err = fab.Apply(ctx, san.ZoneChange{Owner: "test", Zones: []san.Zone{{Name: "vol-db1", Epoch: 2,
		Initiators: []string{a01, string(b01.HBAs[0].WWPN)}, Targets: []string{string(topo.Arrays["fc1"].Spec.Targets[0].WWPN)}}}})
	must(t, err)
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
