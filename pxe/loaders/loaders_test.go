package loaders_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"rerack.dev/rerack/pxe"
	"rerack.dev/rerack/pxe/loaders"
)

// Every name that the boot plane gives to a machine can be found, and no other.
func TestNamesAreThoseOfThePlane(t *testing.T) {
	var want, have []string
	for _, a := range []pxe.Arch{pxe.ArchBIOS, pxe.ArchEFIX64, pxe.ArchEFIARM64} {
		for _, n := range []string{a.Loader(), a.Shim(), a.GRUB()} {
			if n != "" {
				want = append(want, n)
			}
		}
	}
	for _, l := range loaders.All() {
		have = append(have, l.Name)
	}
	slices.Sort(want)
	slices.Sort(have)
	if !slices.Equal(have, want) {
		t.Errorf("have %v, want %v", have, want)
	}
}

func TestFind(t *testing.T) {
	a, b := t.TempDir(), t.TempDir()
	put := func(parts ...string) string {
		path := filepath.Join(parts...)
		if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	grub := loaders.All()[4]
	put(b, "grubx64.efi.signed") // the one for disks
	if err := os.Mkdir(filepath.Join(a, grub.Name), 0o700); err != nil {
		t.Fatal(err)
	}
	if got := grub.Find(a, b); got != "" {
		t.Errorf("found %s", got)
	}
	debian := put(b, "grubnetx64.efi.signed")
	if got := grub.Find(a, b); got != debian {
		t.Errorf("found %q", got)
	}
	own := put(b, "grubx64.efi")
	if got := grub.Find(a, b); got != own {
		t.Errorf("found %q", got)
	}
	if got := loaders.All()[0].Find(a, b); got != "" {
		t.Errorf("found %s", got)
	}
}
