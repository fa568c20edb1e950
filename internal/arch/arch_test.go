// Package arch holds the test of the import rules.
package arch

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "rerack.dev/rerack/"

type pkg struct {
	ImportPath string
	Imports    []string
}

func list(t *testing.T) []pkg {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Imports", module+"...").Output()
	if err != nil {
		t.Fatal(err)
	}
	var all []pkg
	d := json.NewDecoder(strings.NewReader(string(out)))
	for {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		p.ImportPath = strings.TrimPrefix(p.ImportPath, module)
		all = append(all, p)
	}
}

func under(path string, roots ...string) bool {
	return slices.ContainsFunc(roots, func(r string) bool { return path == r || strings.HasPrefix(path, r+"/") })
}

var layers = []string{"bmc", "pxe", "fabric", "sanzoning", "hypervisor"}

// mayImport says whether one of our packages may import another.
func mayImport(from, to string) bool {
	if under(to, "internal") {
		return true
	}
	switch {
	case under(from, "internal"):
		return false
	case under(from, layers...):
		root, _, _ := strings.Cut(from, "/")
		return under(to, root)
	case under(from, "orchestrator/topology"):
		return under(to, "orchestrator/topology")
	case under(from, "orchestrator/store"):
		return under(to, "orchestrator/store")
	case under(from, "policies"):
		return under(to, "policies", "orchestrator/topology")
	case under(from, "orchestrator/state"):
		return under(to, "orchestrator/store", "policies", "orchestrator/topology")
	case under(from, "workflows"):
		return under(to, append([]string{"workflows", "policies", "orchestrator/topology", "orchestrator/store", "orchestrator/state"}, layers...)...)
	case under(from, "orchestrator"):
		return !under(to, "cmd", "test")
	case under(from, "test/world"):
		return under(to, "orchestrator/topology")
	case under(from, "test/workflowtest"): // in-memory drivers, which the workflows' own tests run on
		return under(to, "test/world", "workflows") || under(to, "orchestrator", "policies") && !under(to, "orchestrator/api") || under(to, layers...)
	case under(from, "test/chaos"): // runs the workflows themselves, on virtual time
		return under(to, "test", "workflows", "policies", "orchestrator", "examples") && !under(to, "orchestrator/api") || under(to, layers...)
	case under(from, "test/gen", "examples"):
		return under(to, "orchestrator/topology", "examples")
	case under(from, "test"):
		return !under(to, "cmd") && !under(to, "workflows", "orchestrator/api")
	}
	return under(from, "cmd")
}

// vendors names who alone may import a third party's module.
var vendors = map[string][]string{
	"go.temporal.io/server":              {"workflows/engine"},
	"go.temporal.io/":                    {"workflows", "test/chaos"},
	"github.com/hashicorp/consul":        {"orchestrator/store/consul", "test/consul"},
	"github.com/stmcginnis/gofish":       {"bmc/redfish", "bmc/bmcsim", "bmc/bmclib"},
	"github.com/bougou/go-ipmi":          {"bmc/ipmi", "bmc/bmcsim"},
	"github.com/bmc-toolbox/bmclib":      {"bmc/bmclib"},
	"github.com/icholy/digest":           {"bmc/amt", "bmc/bmcsim"},
	"github.com/ovn-kubernetes/libovsdb": {"fabric/ovs", "fabric/ovssim", "fabric/fabrictest"},
	"github.com/insomniacslk/dhcp":       {"pxe", "internal/pid1"},
	"github.com/vishvananda/netlink":     {"internal/pid1", "hypervisor/qemu"},
	"github.com/digitalocean/go-libvirt": {"hypervisor/libvirt"},
	"github.com/vmware/govmomi":          {"hypervisor/vsphere"},
	"go.etcd.io/bbolt":                   {"orchestrator/store/embedded"},
	"github.com/danielgtaylor/huma":      {"orchestrator/api", "orchestrator/topology"},
	"github.com/spf13/cobra":             {"cmd"},
}

func TestImportRules(t *testing.T) {
	all := list(t)
	if len(all) < 20 {
		t.Fatalf("only %d packages found", len(all))
	}
	for _, p := range all {
		for _, i := range p.Imports {
			if to, ours := strings.CutPrefix(i, module); ours {
				if !mayImport(p.ImportPath, to) {
					t.Errorf("%s must not import %s", p.ImportPath, to)
				}
				continue
			}
			for vendor, users := range vendors {
				if strings.HasPrefix(i, vendor) && !under(p.ImportPath, users...) {
					t.Errorf("%s must not import %s: only %v may", p.ImportPath, i, users)
				}
			}
		}
	}
}

// The pure packages do no I/O. math/rand/v2 is let in for generators with a fixed seed.
func TestPurePackages(t *testing.T) {
	forbidden := []string{"net", "net/http", "os", "os/exec", "math/rand", "crypto/rand", "syscall"}
	for _, p := range list(t) {
		if !under(p.ImportPath, "policies", "orchestrator/topology") || under(p.ImportPath, "policies/placementbench") {
			continue
		}
		for _, i := range p.Imports {
			if slices.Contains(forbidden, i) {
				t.Errorf("%s is pure and must not import %s", p.ImportPath, i)
			}
		}
	}
}
