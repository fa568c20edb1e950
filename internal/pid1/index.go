package pid1

import (
	"bufio"
	"bytes"
	"fmt"
	"path"
	"slices"
	"strings"

	"rerack.dev/rerack/internal/fault"
)

// IndexName is the name of the index in a folder of modules.
const IndexName = "index"

// Index says of kernel modules when each is wanted and what it needs. In a file it is one line per module,
// the needed before those that need them:
//
//	always NAME [NEEDS...]
//	needed NAME [NEEDS...]
//	for NAME [NEEDS...]
//	alias NAME PATTERN
//
// A pattern is one of depmod's, over what the kernel calls a device's modalias.
type Index struct{ Modules []Module }

// Module is one kernel module.
type Module struct {
	Name    string
	Always  bool     // wanted on every machine
	Needs   []string // other modules, direct ones at least
	Aliases []string // wanted where a device matches one
}

// Limits of an index.
const (
	maxIndex   = 8 << 20
	maxModules = 8192
)

// Bytes writes the index. The same index gives the same bytes.
func (x Index) Bytes() []byte {
	var b bytes.Buffer
	for _, m := range x.Modules {
		how := "needed"
		switch {
		case m.Always:
			how = "always"
		case len(m.Aliases) > 0:
			how = "for"
		}
		fmt.Fprintln(&b, strings.Join(append([]string{how, m.Name}, m.Needs...), " "))
		for _, a := range m.Aliases {
			fmt.Fprintln(&b, "alias", m.Name, a)
		}
	}
	return b.Bytes()
}

// ParseIndex reads what Bytes wrote.
func ParseIndex(b []byte) (Index, error) {
	var x Index
	if len(b) > maxIndex {
		return x, fault.Newf(fault.Invalid, "index of kernel modules: more than %d bytes", maxIndex)
	}
	at := map[string]int{}
	s := bufio.NewScanner(bytes.NewReader(b))
	for n := 1; s.Scan(); n++ {
		bad := func(why string) (Index, error) {
			return Index{}, &fault.Error{Kind: fault.Invalid, Where: fmt.Sprintf("index of kernel modules, line %d", n), What: why, Evidence: fmt.Sprintf("%.80q", s.Text())}
		}
		f := strings.Fields(s.Text())
		if len(f) < 2 || !isModule(f[1]) {
			return bad("want a word and a module's name")
		}
		i, known := at[f[1]]
		switch f[0] {
		case "alias":
			if !known || len(f) != 3 {
				return bad("an alias is for a module that is listed before, and has one pattern")
			}
			x.Modules[i].Aliases = append(x.Modules[i].Aliases, f[2])
		case "always", "needed", "for":
			if known || len(x.Modules) == maxModules {
				return bad("listed twice, or too many")
			}
			for _, need := range f[2:] {
				if _, ok := at[need]; !ok {
					return bad("what it needs is not listed before it: " + need)
				}
			}
			at[f[1]] = len(x.Modules)
			x.Modules = append(x.Modules, Module{Name: f[1], Always: f[0] == "always", Needs: f[2:]})
		default:
			return bad("neither always, needed, for nor alias")
		}
	}
	if err := s.Err(); err != nil {
		return Index{}, &fault.Error{Kind: fault.Invalid, What: "index of kernel modules", Err: err}
	}
	return x, nil
}

// isModule refuses what cannot be a module's file name.
func isModule(name string) bool {
	return name != "" && len(name) < 64 && !strings.ContainsAny(name, "/\x00") && name[0] != '.'
}

// Want lists the modules for a machine with this hardware, in an order in which they load.
func (x Index) Want(hardware []string) []string {
	wanted := map[string]bool{}
	for _, m := range slices.Backward(x.Modules) { // the needed come first, so those who need them are seen before
		if !m.Always && !wanted[m.Name] && !m.drives(hardware) {
			continue
		}
		wanted[m.Name] = true
		for _, n := range m.Needs {
			wanted[n] = true
		}
	}
	var out []string
	for _, m := range x.Modules {
		if wanted[m.Name] {
			out = append(out, m.Name)
		}
	}
	return out
}

func (m Module) drives(hardware []string) bool {
	return slices.ContainsFunc(m.Aliases, func(pattern string) bool {
		return slices.ContainsFunc(hardware, func(device string) bool {
			ok, err := path.Match(pattern, device) // a modalias has no slash
			return ok && err == nil
		})
	})
}
