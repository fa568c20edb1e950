package topology_test

import (
	"os"
	"testing"

	"rerack.dev/rerack/orchestrator/topology"
)

func load(t testing.TB, dir string) *topology.Topology {
	t.Helper()
	top, err := topology.LoadFS(os.DirFS("../../examples"), dir)
	if err != nil {
		t.Fatal(err)
	}
	return top
}

func TestStoryLoads(t *testing.T) {
	for dir, machines := range map[string]int{"story": 30, "story-scarce": 26} {
		top := load(t, dir)
		if len(top.Machines) != machines {
			t.Errorf("%s has %d machines, want %d", dir, len(top.Machines), machines)
		}
	}
}
