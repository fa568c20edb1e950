package lab

import (
	"os"
	"path/filepath"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/topology"
)

// allowForPost gives the policies' boot deadlines the time that the lab's machines spend in their
// firmware: declared ones are for machines that spend none. A VM waits for its Host's.
func (l *Lab) allowForPost() {
	if l.cfg.Post == 0 {
		return
	}
	for _, name := range l.topo.Names(topology.KindPolicy) {
		p := l.topo.Policies[name]
		if p.Spec.Recovery.BootDeadline != 0 {
			p.Spec.Recovery.BootDeadline += topology.Duration(2 * (l.cfg.Post + l.cfg.PostVM))
			l.topo.Policies[name] = p
		}
	}
}

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
