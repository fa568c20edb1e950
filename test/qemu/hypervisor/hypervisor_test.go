// Package hypervisor_test boots Rerack's own hypervisor on a machine, and virtual machines on that.
package hypervisor_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"rerack.dev/rerack/hypervisor"
	"rerack.dev/rerack/hypervisor/agent"
	"rerack.dev/rerack/hypervisor/driver"
	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/internal/pki"
	"rerack.dev/rerack/pxe"
	"rerack.dev/rerack/pxe/bootserver"
	"rerack.dev/rerack/pxe/imagebuild"
	"rerack.dev/rerack/pxe/ipxe"
	"rerack.dev/rerack/pxe/pxetest"
	"rerack.dev/rerack/test/qemu/machine"
	"rerack.dev/rerack/test/qemu/qemutest"
	"rerack.dev/rerack/test/qemu/sitetest"
	"rerack.dev/rerack/test/qemu/vswitch"
)

// memory is what the image is made to run in, in MiB.
const memory = 768

// patience is for a machine in an emulated machine on a busy one.
const patience = 3 * time.Minute

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// until waits for a condition.
func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(what)
		}
	}
}

// initrd builds the image with the agent of this checkout.
func initrd(t *testing.T) (kernel string, image []byte) {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "rerack-agent")
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", bin, "rerack.dev/rerack/cmd/rerack-agent")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	k, err := imagebuild.FindKernel(qemutest.Roots(t)...)
	if err != nil {
		qemutest.Sources(t) // skips, or fails where peers are required
	}
	r := imagebuild.Hypervisor(k, "/", bin)
	if err := r.Validate(); err != nil {
		if os.Getenv("RERACK_REQUIRE_PEERS") == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	var b bytes.Buffer
	must(t, r.Build(&b))
	return k.Image, b.Bytes()
}

// authority signs for agents and for the one who may call them.
type authority struct{ *pki.CA }

// nobody signs for no one.
type nobody struct{}

// Join implements pxe.Joiner.
func (nobody) Join(context.Context, pxe.Join) (chain, ca []byte, err error) {
	return nil, nil, fault.New(fault.Unauthorized, "not this one")
}

// Join implements pxe.Joiner.
func (a authority) Join(_ context.Context, j pxe.Join) (chain, ca []byte, err error) {
	chain, err = a.SignAgent(j.CSR, j.Machine, j.Epoch)
	return chain, a.PEM(), err
}

// lab is a site with a boot server that has the image.
type lab struct {
	*sitetest.Site
	t             *testing.T
	ca            *pki.CA
	caller        tls.Certificate
	boot          *pxetest.Site
	kernel, image pxe.Digest
}

func newLab(t *testing.T, joiner ...pxe.Joiner) *lab {
	kernel, image := initrd(t)
	l := &lab{Site: sitetest.New(t), t: t}
	var err error
	l.ca, err = pki.Open(t.TempDir())
	must(t, err)
	l.caller, err = l.ca.Client("rerack")
	must(t, err)
	l.boot = l.Serve(func(c *bootserver.Config) { c.Joiner = append(joiner, authority{l.ca})[0] })
	b, err := os.ReadFile(kernel)
	must(t, err)
	l.kernel, err = l.boot.Images.Import(t.Context(), "hypervisor.kernel", bytes.NewReader(b), "")
	must(t, err)
	l.image, err = l.boot.Images.Import(t.Context(), "hypervisor.initrd", bytes.NewReader(image), "")
	must(t, err)
	t.Logf("kernel %d KiB, initial RAM disk %d KiB", len(b)>>10, len(image)>>10)
	return l
}

// on turns machine i on to boot the hypervisor. Its port has these VLANs tagged.
func (l *lab) on(i int, epoch uint64, vlans ...int) (pxe.Intent, *sitetest.Running) {
	l.t.Helper()
	in := l.boot.Intent(i, &pxe.Boot{Kernel: &pxe.Kernel{Kernel: l.kernel, Initrds: []pxe.Digest{l.image}, Params: []ipxe.Param{
		{Key: "console", Value: "ttyS0"}, {Key: "quiet"}, {Key: "no_timer_check"}, {Key: "tsc", Value: "reliable"}}}})
	in.Epoch = epoch
	in.NICs[0].Gateway = l.Self
	l.boot.Set(in)
	return in, l.Start(i, machine.Boot{Device: machine.Network}, vswitch.Settings{Access: sitetest.VLAN, Tagged: vlans}, machine.Config{MemoryMiB: memory, CPUs: 2})
}

// host boots the hypervisor and connects to its agent as the control plane does.
func (l *lab) host(i int, epoch uint64, vlans ...int) (*sitetest.Running, *hypervisor.Host) {
	t := l.t
	t.Helper()
	begin := time.Now()
	in, m := l.on(i, epoch, vlans...)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	_, err := l.boot.Ledger.Wait(ctx, in.Machine, pxe.KindHealthy)
	must(t, err)
	t.Logf("power-on to healthy: %s", time.Since(begin).Round(time.Millisecond))
	home, err := l.boot.Ledger.Wait(ctx, in.Machine, pxe.KindPhoneHome)
	must(t, err)
	c, err := agent.Dial(agent.ClientConfig{URL: l.forward(home.AgentURL), Certificate: l.caller, CA: l.ca.Pool(), Machine: in.Machine, Epoch: epoch, Timeout: time.Minute})
	must(t, err)
	h, err := hypervisor.New(c, hypervisor.Config{Machine: in.Machine})
	must(t, err)
	t.Cleanup(func() { must(t, h.Close()) })
	return m, h
}

// forward is a way from this machine's network to the site's, until the test ends.
func (l *lab) forward(url string) string {
	t := l.t
	t.Helper()
	to := netip.MustParseAddrPort(url[len("https://"):])
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	pass := func(near net.Conn) {
		defer near.Close()
		far, err := l.Host.Dial(ctx, to)
		if err != nil {
			return
		}
		defer far.Close()
		stop := context.AfterFunc(ctx, func() { _ = errors.Join(near.Close(), far.Close()) })
		defer stop()
		wg.Go(func() {
			_, _ = io.Copy(far, near)
			_ = far.Close()
		})
		_, _ = io.Copy(near, far)
	}
	wg.Go(func() {
		for {
			near, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { pass(near) })
		}
	})
	t.Cleanup(func() {
		cancel()
		_ = ln.Close()
		wg.Wait()
	})
	return "https://" + ln.Addr().String()
}

const initiator = "iqn.2026-01.org.example:host-db1"

// vm is a machine for a workload on the array's volume.
func (l *lab) vm(name string, epoch uint64) driver.Spec {
	return driver.Spec{Name: name, UUID: "8fbf43ac-18d1-4480-82ce-5095cffe1059", CPUs: 1, MemoryMiB: 32, Arch: "x86_64", Firmware: "bios", Epoch: epoch,
		Disks: []driver.Disk{{Volume: "root", Boot: true, ISCSI: &driver.ISCSI{Portal: l.Self.String() + ":3260", Target: sitetest.Volume, LUN: 1, Initiator: initiator}}}}
}

// TestAWorkloadMovesBetweenMetalAndVM boots one volume on a bare machine, then in a virtual machine on
// another, and then on the bare machine again. Nothing is copied, and no write is lost.
func TestAWorkloadMovesBetweenMetalAndVM(t *testing.T) {
	l := newLab(t)
	system, err := os.ReadFile("../machine/testdata/counter.bin")
	must(t, err)
	disk := filepath.Join(t.TempDir(), "disk")
	must(t, os.WriteFile(disk, system, 0o600))
	must(t, os.Truncate(disk, 32<<20)) // more than one cylinder of 255 heads with 63 sectors
	v := l.SAN(disk)
	metal := func(epoch uint64) *sitetest.Running {
		v.Mask(t, epoch, "127.9.0.1")
		in := l.boot.Intent(1, &pxe.Boot{ISCSI: &ipxe.Target{Portal: netip.AddrPortFrom(l.Self, 3260), Name: sitetest.Volume, LUN: 1, Initiator: initiator}})
		in.Epoch = epoch
		l.boot.Set(in)
		return l.On(1, machine.BIOS, machine.Boot{Device: machine.Network})
	}

	a := metal(1)
	l.Says(a, "disk: 0003")
	a.Off()
	was := v.Count(t)

	m, h := l.host(2, 2, 120)
	c, err := h.Capacity(t.Context())
	must(t, err)
	t.Logf("of %d MiB the host gives %d to its machines", memory, c.MemoryMiB)
	s := l.vm("db1", 2)
	must(t, h.Define(t.Context(), s))
	if err := h.Start(t.Context(), "db1", 2); err == nil {
		t.Error("it starts before the volume is its own")
	}
	v.Mask(t, 2, "127.9.0.2")
	begin := time.Now()
	must(t, h.Start(t.Context(), "db1", 2))
	until(t, "the disk does not go on counting in the VM", func() bool { return v.Count(t) > was })
	t.Logf("start to first write: %s", time.Since(begin).Round(time.Millisecond))
	until(t, "the disk stops", func() bool { return v.Count(t) > was+5 })
	must(t, h.Drain(t.Context()))
	must(t, h.Stop(t.Context(), "db1", 2))
	was = v.Count(t)
	must(t, h.Undefine(t.Context(), "db1", 2))
	if err := h.Define(t.Context(), s); err == nil {
		t.Error("a draining host takes a machine")
	}
	m.Off()

	b := metal(3)
	until(t, "the disk does not go on counting on the machine", func() bool { return v.Count(t) > was })
	b.Off()
}

// TestCardsOnTheirVLANs has two machines ask for a system, each on its VLAN, and nobody hear them on
// another one, nor the host be heard on theirs.
func TestCardsOnTheirVLANs(t *testing.T) {
	l := newLab(t)
	ears := map[int]*vswitch.Wire{}
	for _, vlan := range []int{120, 121, 122} {
		p, err := l.Switch.Add("ear "+string(rune('0'+vlan%10)), vswitch.Settings{Access: vlan})
		must(t, err)
		ears[vlan], err = p.Connect()
		must(t, err)
		t.Cleanup(ears[vlan].Close)
	}
	_, h := l.host(2, 1, 120, 121, 122)
	heard := map[int]map[string]int{120: {}, 121: {}, 122: {}}
	hear := func() {
		for vlan, ear := range ears {
			for len(ear.Frames()) > 0 {
				f := <-ear.Frames()
				heard[vlan][net.HardwareAddr(f[6:12]).String()]++
			}
		}
	}
	macs := map[int]string{120: "02:00:00:00:01:20", 121: "02:00:00:00:01:21"}
	for vlan, mac := range macs {
		s := l.vm("web"+mac[15:], 1)
		s.UUID = "8fbf43ac-18d1-4480-82ce-5095cffe10" + mac[15:]
		s.MemoryMiB, s.Disks, s.NICs = 64, nil, []driver.NIC{{MAC: mac, VLAN: vlan}}
		must(t, h.Define(t.Context(), s))
		must(t, h.Start(t.Context(), s.Name, 1))
	}
	until(t, "the machines are not heard", func() bool {
		hear()
		return heard[120][macs[120]] > 0 && heard[121][macs[121]] > 0
	})
	for _, mac := range macs {
		must(t, h.Stop(t.Context(), "web"+mac[15:], 1))
	}
	hear()
	delete(heard[120], macs[120])
	delete(heard[121], macs[121])
	for vlan, others := range heard {
		if len(others) > 0 {
			t.Errorf("on VLAN %d there is %v too", vlan, others)
		}
	}
}

// TestAHostThatMayNotJoin says so and turns its machine off: one that nobody controls must not stay on.
func TestAHostThatMayNotJoin(t *testing.T) {
	l := newLab(t, nobody{})
	in, m := l.on(2, 1)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	failed, err := l.boot.Ledger.Wait(ctx, in.Machine, pxe.KindFailed)
	must(t, err)
	t.Log(failed.Detail)
	select {
	case <-m.Ended:
	case <-ctx.Done():
		t.Error("the machine stays on")
	}
}
