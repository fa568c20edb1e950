package vsphere_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"log/slog"
	"net/url"
	"strings"
	"testing"

	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"

	"rerack.dev/rerack/hypervisor/driver"
	"rerack.dev/rerack/hypervisor/hypervisortest"
	"rerack.dev/rerack/hypervisor/vsphere"
	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/internal/pki"
)

func TestConfig(t *testing.T) {
	login := func(context.Context) (string, string, error) { return "", "", nil }
	good := vsphere.Config{Machine: "b01", URL: "https://vc.example.org", TLS: &tls.Config{MinVersion: tls.VersionTLS12}, Login: login, Datastore: "ds 1"}
	check(t, good.Validate())
	for key, spoil := range map[string][]func(*vsphere.Config){
		"machine": {func(c *vsphere.Config) { c.Machine = "" }},
		"url": {func(c *vsphere.Config) { c.URL = "http://vc" }, func(c *vsphere.Config) { c.URL = "https://" },
			func(c *vsphere.Config) { c.URL = "https://root:x@vc" }},
		"tls": {func(c *vsphere.Config) { c.TLS = nil },
			func(c *vsphere.Config) { c.TLS = &tls.Config{InsecureSkipVerify: true} }}, //nolint:gosec // refused
		"login":         {func(c *vsphere.Config) { c.Login = nil }},
		"datastore":     {func(c *vsphere.Config) { c.Datastore = "" }, func(c *vsphere.Config) { c.Datastore = "a] [b" }},
		"host":          {func(c *vsphere.Config) { c.Host = "/dc/host/a" }},
		"cpuShare":      {func(c *vsphere.Config) { c.CPUShare = -1 }},
		"reserveMiB":    {func(c *vsphere.Config) { c.ReserveMiB = -1 }},
		"readTimeout":   {func(c *vsphere.Config) { c.ReadTimeout = -1 }},
		"changeTimeout": {func(c *vsphere.Config) { c.ChangeTimeout = -1 }},
		"lockBroken":    {func(c *vsphere.Config) { c.LockBroken = 1 }},
	} {
		for i, f := range spoil {
			c := good
			f(&c)
			if _, err := vsphere.New(c); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), key) || strings.Contains(err.Error(), "root:x") {
				t.Errorf("%s, case %d: %v", key, i, err)
			}
		}
	}
}

// A server with another certificate gets no password, and one that refuses it is not asked again at once.
func TestTrust(t *testing.T) {
	c := newCenter(t, simulator.VPX())
	cfg := c.config(t)
	asked := 0
	cfg.Login = func(context.Context) (string, string, error) { asked++; return "rerack", password, nil }
	for what, trust := range map[string]*tls.Config{"the system's authorities": {MinVersion: tls.VersionTLS12}, "another certificate": pinned(t, strings.Repeat("0", 64))} {
		cfg.TLS = trust
		if _, err := open(t, cfg).VMs(t.Context()); !fault.Is(err, fault.Unauthorized) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if asked != 0 {
		t.Error("the password was asked for before the server was known")
	}
	c.model.Service.Listen.User = url.UserPassword("rerack", password)
	var log bytes.Buffer
	cfg = c.config(t)
	cfg.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	if _, err := open(t, cfg).VMs(t.Context()); err != nil {
		t.Error(err)
	}
	cfg.Login = func(context.Context) (string, string, error) { return "rerack", "wrong-" + password, nil }
	_, err := open(t, cfg).VMs(t.Context())
	if !fault.Is(err, fault.Unauthorized) || strings.Contains(err.Error()+log.String(), password) {
		t.Errorf("%v; %s", err, &log)
	}
}

func pinned(t *testing.T, print string) *tls.Config {
	t.Helper()
	trust, err := pki.Trust("", print)
	check(t, err)
	return trust
}

// A session that has ended is replaced by a new one.
func TestSessionThatEnds(t *testing.T) {
	c := newCenter(t, simulator.VPX())
	h := open(t, c.config(t))
	for range 2 {
		_, err := h.VMs(t.Context())
		check(t, err)
		check(t, h.Close())
	}
}

// What a host does not have is refused by name, before anything is made.
func TestWhatTheHostLacks(t *testing.T) {
	c := newCenter(t, simulator.VPX())
	h := open(t, c.config(t))
	for what, x := range map[string]struct {
		kind   fault.Kind
		says   string
		change func(*driver.Spec)
	}{
		"VLAN":   {fault.Unsupported, "VLAN 77", func(s *driver.Spec) { s.NICs[0].VLAN = 77 }},
		"arch":   {fault.Unsupported, "arm64", func(s *driver.Spec) { s.Arch = "arm64" }},
		"LUN":    {fault.Conflict, "LUN 9 of iqn.2026-01.org.example:db1", func(s *driver.Spec) { s.Disks[1].ISCSI.LUN = 9 }},
		"target": {fault.Conflict, "iqn.x", func(s *driver.Spec) { s.Disks[1].ISCSI.Target = "iqn.x" }},
		"port":   {fault.Conflict, "50:06:01:60:3b:20:11:ab", func(s *driver.Spec) { s.Disks[0].FC.WWPN = "50:06:01:60:3b:20:11:ab" }},
	} {
		s := whole(t)
		x.change(&s)
		if err := h.Define(t.Context(), s); !fault.Is(err, x.kind) || !strings.Contains(err.Error(), x.says) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if vms, err := h.VMs(t.Context()); err != nil || len(vms) != 0 {
		t.Errorf("%v, %v", vms, err)
	}
	cfg := c.config(t)
	cfg.Host = "other"
	if _, err := open(t, cfg).VMs(t.Context()); !fault.Is(err, fault.NotFound) {
		t.Errorf("a host that is not there: %v", err)
	}
}

// A VM of ours that somebody has moved to another host is still stopped here; one that a person has changed
// is not taken for what was defined.
func TestMovedAndChanged(t *testing.T) {
	ctx := t.Context()
	c := newCenter(t, simulator.VPX())
	h := open(t, c.config(t))
	s := hypervisortest.Spec("db1", 1, 5)
	check(t, h.Define(ctx, s))
	check(t, h.Start(ctx, "db1", 5))
	f := find.NewFinder(c.admin.Client)
	dc, err := f.DefaultDatacenter(ctx)
	check(t, err)
	f.SetDatacenter(dc)
	vm, err := f.VirtualMachine(ctx, "/DC0/vm/rerack."+c.host+"/db1")
	check(t, err)
	hosts, err := f.HostSystemList(ctx, "*")
	check(t, err)
	to := hosts[1].Reference()
	pool, err := hosts[1].ResourcePool(ctx)
	check(t, err)
	where := pool.Reference()
	task, err := vm.Relocate(ctx, types.VirtualMachineRelocateSpec{Host: &to, Pool: &where}, types.VirtualMachineMovePriorityDefaultPriority)
	check(t, err)
	check(t, task.Wait(ctx))
	check(t, h.Stop(ctx, "db1", 6))
	if on := c.running(t); len(on) != 0 {
		t.Errorf("running: %v", on)
	}
	task, err = vm.Reconfigure(ctx, types.VirtualMachineConfigSpec{NumCPUs: 2})
	check(t, err)
	check(t, task.Wait(ctx))
	if vms, err := h.VMs(ctx); err != nil || len(vms) != 1 || vms[0].Spec.Equal(s) || vms[0].Epoch != 6 {
		t.Errorf("%+v, %v", vms, err)
	}
	check(t, h.Undefine(ctx, "db1", 6))
}
