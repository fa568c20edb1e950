package gateway

import (
	"context"
	"testing"

	"rerack.dev/rerack/hypervisor/driver"
	"rerack.dev/rerack/hypervisor/hypersim"
	"rerack.dev/rerack/internal/fault"
)

// told is what a driver was told last.
type told struct {
	driver.Host
	spec driver.Spec
}

func (t *told) Define(ctx context.Context, s driver.Spec) error {
	t.spec = s.Clone()
	return t.Host.Define(ctx, s)
}

// A host's driver is told the secrets that a definition names; whoever gave the definition is not.
func TestSecretsOfDefinitions(t *testing.T) {
	sim, err := hypersim.New(hypersim.Config{Name: "b01", CPUs: 4, MemoryMiB: 4096})
	if err != nil {
		t.Fatal(err)
	}
	d := &told{Host: sim}
	g := New(Config{CHAP: func(_ context.Context, name string) (string, string, error) {
		if name != "san/db1" {
			return "", "", &fault.Error{Kind: fault.NotFound, Where: name, What: "no such secret"}
		}
		return "db1", "canary-of-the-target", nil
	}})
	h, err := g.told(d, "b01")
	if err != nil {
		t.Fatal(err)
	}
	spec := driver.Spec{Name: "db1", UUID: "8fbf43ac-18d1-4480-82ce-5095cffe1001", CPUs: 1, MemoryMiB: 512, Arch: "x86_64", Firmware: "bios", Epoch: 3,
		Disks: []driver.Disk{{Volume: "root", Boot: true, ISCSI: &driver.ISCSI{Portal: "192.0.2.1:3260", Target: "iqn.2026-01.org.example:db1", LUN: 1,
			CHAP: &driver.CHAP{Name: "san/db1"}}}}}
	if err := h.Define(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	if c := d.spec.Disks[0].ISCSI.CHAP; c.User != "db1" || c.Secret != "canary-of-the-target" {
		t.Errorf("the driver was told user %q and a secret of %d bytes", c.User, len(c.Secret))
	}
	if c := *spec.Disks[0].ISCSI.CHAP; c != (driver.CHAP{Name: "san/db1"}) {
		t.Errorf("the definition was changed: user %q", c.User)
	}
	spec.Name, spec.UUID = "db2", "8fbf43ac-18d1-4480-82ce-5095cffe1002"
	spec.Disks[0].ISCSI.CHAP.Name = "san/nobody"
	if err := h.Define(t.Context(), spec); !fault.Is(err, fault.NotFound) {
		t.Errorf("a secret that is not there: %v", err)
	}
	if vms, err := h.VMs(t.Context()); err != nil || len(vms) != 1 {
		t.Errorf("%d VMs, %v", len(vms), err)
	}
}
