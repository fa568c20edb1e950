package lab

import (
	"os"
	"path/filepath"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/pxe/loaders"
)

const loadersDir = "loaders"

// makeLoaders writes what firmware loads first. The lab's machines have iPXE's behaviour built in, so
// the content is noise; it is fetched whole all the same. Real machines get the real ones.
func (l *Lab) makeLoaders() error {
	dir := filepath.Join(l.cfg.Dir, loadersDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fault.Wrap(err, "make boot loaders", dir)
	}
	for _, loader := range loaders.All() {
		b, err := l.loader(loader)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, loader.Name), b, 0o600); err != nil {
			return fault.Wrap(err, "make boot loaders", dir)
		}
	}
	return nil
}

func (l *Lab) loader(x loaders.Loader) ([]byte, error) {
	path := ""
	if l.cfg.QEMU != nil {
		path = x.Find(append([]string{l.cfg.QEMU.Loaders}, loaders.Folders("/")...)...)
		if path == "" && x.Common {
			return nil, &fault.Error{Kind: fault.NotFound, Where: l.cfg.QEMU.Loaders, What: "find boot loader " + x.Name, Next: "install the package " + x.Package}
		}
	}
	if path == "" {
		return l.blob(x.Name, "RERACK LAB LOADER"), nil
	}
	b, err := os.ReadFile(path)
	return b, fault.Wrap(err, "read boot loader", path)
}
