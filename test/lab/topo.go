package lab

import (
	"os"
	"path/filepath"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/topology"
)

// writeTopology puts the rewritten topology where a server can load it.
func (l *Lab) writeTopology() error {
	b, err := topology.Marshal(l.Topology())
	if err != nil {
		return fault.Wrap(err, "render the topology", "lab")
	}
	dir := filepath.Join(l.cfg.Dir, "topology")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fault.Wrap(err, "make directory", dir)
	}
	return fault.Wrap(os.WriteFile(filepath.Join(dir, "lab.yaml"), b, 0o600), "write", "topology")
}
