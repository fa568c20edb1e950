package lab

import (
	"os"
	"path/filepath"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/pxe"
)

const loadersDir = "loaders"

// makeLoaders writes what firmware loads first. The lab's machines have iPXE's behaviour built in, so
// the content is noise; it is fetched whole all the same.
func (l *Lab) makeLoaders() error {
	dir := filepath.Join(l.cfg.Dir, loadersDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fault.Wrap(err, "make boot loaders", dir)
	}
	for _, a := range []pxe.Arch{pxe.ArchBIOS, pxe.ArchEFIX64, pxe.ArchEFIARM64} {
		if err := os.WriteFile(filepath.Join(dir, a.Loader()), l.blob(a.Loader(), "RERACK LAB LOADER"), 0o600); err != nil {
			return fault.Wrap(err, "make boot loaders", dir)
		}
	}
	return nil
}
