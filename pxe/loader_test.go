package pxe_test

import (
	"net/netip"
	"strings"
	"testing"

	"rerack.dev/rerack/pxe"
	"rerack.dev/rerack/pxe/ipxe"
)

// TestLoader says which loader each machine gets: GRUB, by TFTP and out of a folder of the machine's own,
// where iPXE cannot be, and nothing where neither can boot what it shall.
func TestLoader(t *testing.T) {
	digest := pxe.DigestOf([32]byte{1})
	kernel := &pxe.Boot{Kernel: &pxe.Kernel{Kernel: digest}}
	efi := &pxe.Boot{HTTP: &pxe.Image{File: digest, Form: pxe.FormEFI}}
	disk := &pxe.Boot{HTTP: &pxe.Image{File: digest, Form: pxe.FormDisk}}
	san := &pxe.Boot{ISCSI: &ipxe.Target{Portal: netip.MustParseAddrPort("10.1.0.1:3260"), Name: "iqn.2026-01.x:a", Initiator: "iqn.2026-01.x:b"}}
	for _, tt := range []struct {
		name   string
		arch   pxe.Arch
		class  pxe.Class
		secure bool
		boot   *pxe.Boot
		want   string // T is the token; "" is silence
	}{
		{"x64", pxe.ArchEFIX64, pxe.ClassPXE, false, kernel, "snponly.efi"},
		{"arm64", pxe.ArchEFIARM64, pxe.ClassPXE, false, kernel, "boot/T/grubaa64.efi"},
		{"arm64, an EFI binary", pxe.ArchEFIARM64, pxe.ClassPXE, false, efi, "boot/T/grubaa64.efi"},
		{"arm64 from a LUN", pxe.ArchEFIARM64, pxe.ClassPXE, false, san, "snponly-arm64.efi"},
		{"arm64 by HTTP", pxe.ArchHTTPARM64, pxe.ClassHTTP, false, kernel, "http://10.1.0.1/boot/T/loader/snponly-arm64.efi"},
		{"Secure Boot", pxe.ArchEFIX64, pxe.ClassPXE, true, kernel, "boot/T/shimx64.efi"},
		{"Secure Boot, old number", pxe.ArchEFIBC, pxe.ClassPXE, true, kernel, "boot/T/shimx64.efi"},
		{"Secure Boot, an EFI binary", pxe.ArchEFIX64, pxe.ClassPXE, true, efi, "boot/T/shimx64.efi"},
		{"Secure Boot arm64", pxe.ArchEFIARM64, pxe.ClassPXE, true, kernel, "boot/T/shimaa64.efi"},
		{"Secure Boot, an EFI binary by HTTP", pxe.ArchHTTPX64, pxe.ClassHTTP, true, efi, "http://10.1.0.1/boot/T/image/boot.efi"},
		{"Secure Boot, a kernel by HTTP", pxe.ArchHTTPX64, pxe.ClassHTTP, true, kernel, ""},
		{"Secure Boot from a LUN", pxe.ArchEFIX64, pxe.ClassPXE, true, san, ""},
		{"Secure Boot, a disk image", pxe.ArchEFIX64, pxe.ClassPXE, true, disk, ""},
		{"Secure Boot on BIOS", pxe.ArchBIOS, pxe.ClassPXE, true, kernel, ""},
		{"unknown", 27, pxe.ClassPXE, false, kernel, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tab := table(t)
			in := intent(1, 1)
			in.Boot, in.SecureBoot = tt.boot, tt.secure
			set(t, tab, in)
			d := &pxe.Decider{Table: tab, BaseURL: "http://10.1.0.1"}
			got := d.Decide(pxe.Request{MAC: mac(1), Class: tt.class, Arch: tt.arch, Link: netip.MustParseAddr("10.1.0.0")})
			e, _ := tab.Lookup(mac(1))
			if file := strings.ReplaceAll(got.BootFile, e.Token().Reveal(), "T"); file != tt.want {
				t.Errorf("boot file %q, want %q", file, tt.want)
			}
			if (got.Answer == pxe.Serve) != (tt.want != "") || tt.want == "" && got.Reason != pxe.ReasonNoLoader {
				t.Errorf("%s because %s", got.Answer, got.Reason)
			}
		})
	}
}
