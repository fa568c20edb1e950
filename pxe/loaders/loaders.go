// Package loaders finds the boot loaders that firmware starts first among the files of a distribution.
package loaders

import (
	"os"
	"path/filepath"
)

// Loader is a boot loader by the name that machines load it by, see pxe.Arch.
type Loader struct {
	Name string
	// Debian is how its package calls it, if otherwise. The GRUBs that are made for disks (grubx64.efi.signed)
	// are not the ones for the network.
	Debian  string
	Package string // of Debian; "" when it has none
	Common  bool   // wanted at every site
}

// All returns every loader.
func All() []Loader {
	return []Loader{
		{Name: "undionly.kpxe", Package: "ipxe", Common: true},
		{Name: "snponly.efi", Package: "ipxe", Common: true},
		{Name: "snponly-arm64.efi"},
		{Name: "shimx64.efi", Debian: "shimx64.efi.signed", Package: "shim-signed"},
		{Name: "grubx64.efi", Debian: "grubnetx64.efi.signed", Package: "grub-efi-amd64-signed"},
		{Name: "shimaa64.efi", Debian: "shimaa64.efi.signed", Package: "shim-signed:arm64"},
		{Name: "grubaa64.efi", Debian: "grubnetaa64.efi.signed", Package: "grub-efi-arm64-signed:arm64"},
	}
}

// Folders returns where Debian's packages put them below a root such as "/".
func Folders(root string) []string {
	lib := filepath.Join(root, "usr", "lib")
	return []string{filepath.Join(lib, "ipxe"), filepath.Join(lib, "shim"), filepath.Join(lib, "grub", "x86_64-efi-signed"), filepath.Join(lib, "grub", "arm64-efi-signed")}
}

// Find returns the path of a loader in the first folder that has it, by its own name rather than by
// Debian's; "" when none has it.
func (l Loader) Find(folders ...string) string {
	for _, dir := range folders {
		for _, name := range []string{l.Name, l.Debian} {
			path := filepath.Join(dir, name)
			if info, err := os.Stat(path); name != "" && err == nil && info.Mode().IsRegular() {
				return path
			}
		}
	}
	return ""
}
