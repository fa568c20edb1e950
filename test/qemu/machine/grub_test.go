package machine_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"rerack.dev/rerack/pxe"
	"rerack.dev/rerack/pxe/ipxe"
	"rerack.dev/rerack/pxe/pxetest"
	"rerack.dev/rerack/test/qemu/image"
	"rerack.dev/rerack/test/qemu/machine"
	"rerack.dev/rerack/test/qemu/qemutest"
	"rerack.dev/rerack/test/qemu/sitetest"
	"rerack.dev/rerack/test/qemu/vswitch"
)

// slow is for an emulated machine whose firmware is UEFI, with a chain of loaders, on a busy one.
const slow = 4 * time.Minute

// awaits waits for a milestone.
func awaits(t *testing.T, boot *pxetest.Site, name string, k pxe.Kind) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), slow)
	defer cancel()
	if _, err := boot.Ledger.Wait(ctx, name, k); err != nil {
		t.Fatalf("%v; it reached %v", err, boot.Ledger.Kinds(name))
	}
}

// chained boots machine i by GRUB into the test system, and asks that for its page.
func chained(t *testing.T, s *sitetest.Site, boot *pxetest.Site, i int, c machine.Config, console string) *sitetest.Running {
	t.Helper()
	in := boot.Intent(i, boot.KernelBoot())
	in.SecureBoot = c.SecureBoot
	in.Boot.Kernel.Params = []ipxe.Param{{Key: "console", Value: console}, {Key: "rerack.workload", Value: "web1"}, {Key: "rerack.epoch", Value: "3"}}
	in.NICs[0].Gateway = s.Self
	in.Held = true
	boot.Set(in)
	begin := time.Now()
	r := s.Start(i, machine.Boot{Device: machine.Network}, vswitch.Settings{Access: sitetest.VLAN}, c)
	awaits(t, boot, in.Machine, pxe.KindScript)
	held := time.Since(begin)
	asked := boot.Server.Stats().TFTP.Done
	for end := time.Now().Add(slow); boot.Server.Stats().TFTP.Done < asked+3; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("a machine that is held does not ask again")
		}
	}
	if kinds := boot.Ledger.Kinds(in.Machine); slices.Contains(kinds, pxe.KindKernel) {
		t.Errorf("a machine that is held got its kernel: %v", kinds)
	}
	in.Held = false
	boot.Set(in)
	released := time.Now()
	awaits(t, boot, in.Machine, pxe.KindPhoneHome)
	t.Logf("power-on to GRUB: %s; from there to phone-home: %s", held.Round(100*time.Millisecond), time.Since(released).Round(100*time.Millisecond))
	awaits(t, boot, in.Machine, pxe.KindHealthy)
	kinds := boot.Ledger.Kinds(in.Machine)
	for _, k := range []pxe.Kind{pxe.KindDHCP, pxe.KindBootFile, pxe.KindKernel} {
		if !slices.Contains(kinds, k) {
			t.Errorf("no %s: it reached %v", k, kinds)
		}
	}
	addr := in.NICs[0].Address.Addr().String()
	if page, err := s.Ask(addr + ":80"); err != nil || !strings.Contains(page, `"workload":"web1","epoch":3,"address":"`+addr+`"`) {
		t.Errorf("%q, %v", page, err)
	}
	return r
}

// TestARM64 boots a machine that no iPXE is packaged for.
func TestARM64(t *testing.T) {
	s := sitetest.New(t)
	signed := sitetest.Signed(t, "grubaa64.efi")
	emulator := qemutest.Emulator(t, machine.ARM64)
	kernel, initrd, err := image.Build(qemutest.SourcesOf(t, machine.ARM64))
	must(t, err)
	boot := s.Serve(signed)
	boot.Kernel, err = boot.Images.Import(t.Context(), "vmlinuz", bytes.NewReader(kernel), "")
	must(t, err)
	boot.Initrd, err = boot.Images.Import(t.Context(), "initrd", bytes.NewReader(initrd), "")
	must(t, err)
	chained(t, s, boot, 1, machine.Config{Arch: machine.ARM64, QEMU: emulator, MemoryMiB: 512}, "ttyAMA0")
}

var sealed = machine.Config{Firmware: machine.UEFI, SecureBoot: true, MemoryMiB: 512}

// TestSecureBoot goes by the whole chain that Microsoft's key begins: firmware, shim, GRUB, kernel.
func TestSecureBoot(t *testing.T) {
	s := sitetest.New(t)
	boot := s.Serve(sitetest.Signed(t, "shimx64.efi", "grubx64.efi"))
	r := chained(t, s, boot, 1, sealed, "ttyS0")
	said, err := os.ReadFile(r.Console)
	must(t, err)
	for _, want := range []string{"secureboot: Secure boot enabled", "Kernel is locked down from EFI Secure Boot"} {
		if !bytes.Contains(said, []byte(want)) {
			t.Errorf("the kernel does not say %q", want)
		}
	}
}

// TestSecureBootRefusesAnUnsignedKernel gives a machine the same kernel without its signature.
func TestSecureBootRefusesAnUnsignedKernel(t *testing.T) {
	s := sitetest.New(t)
	boot := s.Serve(sitetest.Signed(t, "shimx64.efi", "grubx64.efi"))
	kernel, _, err := image.Build(qemutest.Sources(t))
	must(t, err)
	boot.Kernel, err = boot.Images.Import(t.Context(), "unsigned", bytes.NewReader(unsign(t, kernel)), "")
	must(t, err)
	in := boot.Intent(1, boot.KernelBoot())
	in.SecureBoot = true
	boot.Set(in)
	r := s.Start(1, machine.Boot{Device: machine.Network}, vswitch.Settings{Access: sitetest.VLAN}, sealed)
	awaits(t, boot, in.Machine, pxe.KindKernel)
	s.Says(r, "bad shim signature")
	said, err := os.ReadFile(r.Console)
	must(t, err)
	if bytes.Contains(said, []byte("Linux version")) {
		t.Error("the kernel runs")
	}
	if kinds := boot.Ledger.Kinds(in.Machine); slices.Contains(kinds, pxe.KindPhoneHome) {
		t.Errorf("it reached %v", kinds)
	}
}

// unsign takes the signature off an EFI binary (PE format, "Attribute Certificate Table").
func unsign(t *testing.T, signed []byte) []byte {
	t.Helper()
	b := bytes.Clone(signed)
	header := binary.LittleEndian.Uint32(b[0x3c:])
	const optional, directories, certificates = 24, 112, 4 * 8 // of PE32+
	entry := b[header+optional+directories+certificates:][:8]
	at, size := binary.LittleEndian.Uint32(entry), binary.LittleEndian.Uint32(entry[4:])
	if size == 0 || int(at+size) != len(b) {
		t.Fatalf("the kernel's signature: %d bytes at %d of %d", size, at, len(b))
	}
	clear(entry)
	return b[:at]
}
