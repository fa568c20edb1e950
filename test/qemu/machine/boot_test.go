package machine_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/pxe"
	"rerack.dev/rerack/pxe/ipxe"
	"rerack.dev/rerack/test/qemu/image"
	"rerack.dev/rerack/test/qemu/machine"
	"rerack.dev/rerack/test/qemu/qemutest"
	"rerack.dev/rerack/test/qemu/sitetest"
	"rerack.dev/rerack/test/qemu/vswitch"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// system writes the test system into files.
func system(t *testing.T) (kernel, initrd string) {
	t.Helper()
	k, i, err := image.Build(qemutest.Sources(t))
	must(t, err)
	dir := t.TempDir()
	kernel, initrd = filepath.Join(dir, "vmlinuz"), filepath.Join(dir, "initrd")
	must(t, errors.Join(os.WriteFile(kernel, k, 0o600), os.WriteFile(initrd, i, 0o600)))
	return kernel, initrd
}

const quietly = "console=ttyS0 quiet no_timer_check tsc=reliable "

func TestAnInstalledSystemOnItsVLAN(t *testing.T) {
	s := sitetest.New(t)
	kernel, initrd := system(t)
	r := s.On(1, machine.BIOS, machine.Boot{Device: machine.Disk, Kernel: &machine.Kernel{Path: kernel, Initrd: initrd,
		Cmdline: quietly + "rerack.workload=web1 rerack.epoch=7 lab.address=10.1.0.1/255.255.0.0"}})
	s.Says(r, "rerack: start workload=web1 epoch=7")
	s.Says(r, "rerack: serving")
	page, err := s.Ask("10.1.0.1:80")
	if err != nil || !strings.Contains(page, `"workload":"web1","epoch":7,"address":"10.1.0.1"`) {
		t.Fatalf("%q, %v", page, err)
	}
	must(t, r.Port.Set(vswitch.Settings{Access: sitetest.VLAN + 1}))
	if page, err := s.Ask("10.1.0.1:80"); err == nil {
		t.Errorf("it answers from another VLAN: %q", page)
	}
	must(t, r.Port.Set(vswitch.Settings{Access: sitetest.VLAN, Shut: true}))
	if _, err := s.Ask("10.1.0.1:80"); err == nil {
		t.Error("it answers from a shut port")
	}
	must(t, r.Port.Set(vswitch.Settings{Access: sitetest.VLAN}))
	if _, err := s.Ask("10.1.0.1:80"); err != nil {
		t.Errorf("back on its VLAN: %v", err)
	}
	r.Off()
	if r.Port.Link() {
		t.Error("the port of a machine without power has a link")
	}
	if _, err := s.Ask("10.1.0.1:80"); err == nil {
		t.Error("it answers without power")
	}
}

// TestNetworkBoot has real firmware boot a real kernel from the product's boot server.
func TestNetworkBoot(t *testing.T) {
	for i, c := range []struct {
		firmware machine.Firmware
		device   machine.Device
		tftp     bool
	}{{machine.BIOS, machine.Network, false}, {machine.UEFI, machine.Network, true}, {machine.UEFI, machine.HTTP, false}} {
		t.Run(string(c.firmware)+" "+string(c.device), func(t *testing.T) {
			s := sitetest.New(t)
			boot := s.Serve()
			in := boot.Intent(i+1, boot.KernelBoot())
			in.Boot.Kernel.Params = []ipxe.Param{{Key: "console", Value: "ttyS0"}, {Key: "quiet"}, {Key: "no_timer_check"},
				{Key: "tsc", Value: "reliable"}, {Key: "rerack.workload", Value: "web1"}, {Key: "rerack.epoch", Value: "3"}}
			in.NICs[0].Gateway = s.Self
			boot.Set(in)
			begin := time.Now()
			s.On(i+1, c.firmware, machine.Boot{Device: c.device})
			ctx, cancel := context.WithTimeout(t.Context(), sitetest.Patience)
			defer cancel()
			if _, err := boot.Ledger.Wait(ctx, in.Machine, pxe.KindHealthy); err != nil {
				t.Fatalf("%v; it reached %v", err, boot.Ledger.Kinds(in.Machine))
			}
			t.Logf("power-on to healthy: %s", time.Since(begin).Round(time.Millisecond))
			kinds := boot.Ledger.Kinds(in.Machine)
			for _, k := range []pxe.Kind{pxe.KindDHCP, pxe.KindBootFile, pxe.KindScript, pxe.KindKernel, pxe.KindPhoneHome} {
				if !slices.Contains(kinds, k) {
					t.Errorf("no %s: it reached %v", k, kinds)
				}
			}
			if sent := boot.Server.Stats().TFTP.Done; (sent > 0) != c.tftp {
				t.Errorf("%d files by TFTP", sent)
			}
			addr := in.NICs[0].Address.Addr().String()
			if page, err := s.Ask(addr + ":80"); err != nil || !strings.Contains(page, `"workload":"web1","epoch":3,"address":"`+addr+`"`) {
				t.Errorf("%q, %v", page, err)
			}
		})
	}
}

func TestARunThatFailsSaysWhy(t *testing.T) {
	dir := t.TempDir()
	m, err := machine.New(machine.Config{Name: "m", QEMU: qemutest.QEMU(t), Dir: dir, Console: filepath.Join(dir, "console"), MemoryMiB: 128,
		Disks: []string{filepath.Join(dir, "no, such, disk")}})
	must(t, err)
	if err := m.Run(t.Context(), machine.Boot{Device: machine.Disk}); !fault.Is(err, fault.Internal) || !strings.Contains(err.Error(), "no, such, disk") {
		t.Errorf("a missing disk: %v", err)
	}
	if err := m.Run(t.Context(), machine.Boot{Device: machine.HTTP}); !fault.Is(err, fault.Unsupported) {
		t.Errorf("HTTP boot by BIOS: %v", err)
	}
}

func TestConfig(t *testing.T) {
	p, err := vswitch.New(nil).Add("p", vswitch.Settings{})
	must(t, err)
	for key, spoil := range map[string]func(*machine.Config){
		"Name":       func(c *machine.Config) { c.Name = "a,b" },
		"Dir":        func(c *machine.Config) { c.Dir = "" },
		"Firmware":   func(c *machine.Config) { c.Firmware = "openfirmware" },
		"Arch":       func(c *machine.Config) { c.Arch = "vax" },
		"SecureBoot": func(c *machine.Config) { c.SecureBoot = true },
		"MemoryMiB":  func(c *machine.Config) { c.MemoryMiB = 32 },
		"CPUs":       func(c *machine.Config) { c.CPUs = -1 },
		"UUID":       func(c *machine.Config) { c.UUID = "x" },
		"Serial":     func(c *machine.Config) { c.Serial = "a,file=/etc/passwd" },
		"NICs[0]":    func(c *machine.Config) { c.NICs = []machine.NIC{{Port: p}} },
	} {
		c := machine.Config{Name: "m", Dir: t.TempDir(), Console: "console", MemoryMiB: 128}
		spoil(&c)
		if _, err := machine.New(c); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), key) {
			t.Errorf("%s: %v", key, err)
		}
	}
}
