package lab

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/pxe"
)

const loadersDir = "loaders"

// makeLoaders writes what firmware loads first. The lab's machines have iPXE's behaviour built in, so
// the content is noise; it is fetched whole all the same. Real machines get the real ones.
func (l *Lab) makeLoaders() error {
	dir := filepath.Join(l.cfg.Dir, loadersDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fault.Wrap(err, "make boot loaders", dir)
	}
	for _, a := range []pxe.Arch{pxe.ArchBIOS, pxe.ArchEFIX64, pxe.ArchEFIARM64} {
		for _, name := range []string{a.Loader(), a.Shim(), a.GRUB()} {
			if name == "" {
				continue
			}
			loader, err := l.loader(name, name == a.Loader() && a != pxe.ArchEFIARM64)
			if err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(dir, name), loader, 0o600); err != nil {
				return fault.Wrap(err, "make boot loaders", dir)
			}
		}
	}
	return nil
}

// loader makes one; a needed one is what real machines of every lab start with.
func (l *Lab) loader(name string, needed bool) ([]byte, error) {
	noise := l.blob(name, "RERACK LAB LOADER")
	if l.cfg.QEMU == nil {
		return noise, nil
	}
	path := filepath.Join(l.cfg.QEMU.Loaders, name)
	b, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && !needed:
		return noise, nil
	case err != nil:
		return nil, &fault.Error{Kind: fault.NotFound, Where: path, What: "read boot loader", Err: err, Next: "install the package ipxe"}
	}
	return b, nil
}
