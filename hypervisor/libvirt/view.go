package libvirt

import (
	"encoding/xml"
	"fmt"
	"strings"

	"github.com/digitalocean/go-libvirt"

	"rerack.dev/rerack/hypervisor/driver"
	"rerack.dev/rerack/internal/fault"
)

// view is the host as it was read.
type view struct {
	guests  map[string]guest
	marks   map[string]uint64 // the newest act on each name
	secrets []libvirt.Secret
	room    driver.Capacity // whole, nothing taken
}

type guest struct {
	dom libvirt.Domain
	vm  driver.VM
}

// maxDomains is what package hypervisor believes a host to have.
const maxDomains = 10_000

// look reads the whole host.
func (s *session) look() (*view, error) {
	v := &view{guests: map[string]guest{}, marks: map[string]uint64{}}
	if err := s.lookAtSecrets(v); err != nil {
		return nil, err
	}
	if err := s.do("read the host's size", func() error {
		_, kib, cpus, _, _, _, _, _, err := s.lv.NodeGetInfo()
		v.room.CPUs = int(cpus) * s.h.cfg.CPUShare
		v.room.MemoryMiB = max(int64(kib/1024)-s.h.cfg.ReserveMiB, 0) //nolint:gosec // KiB of a host fit
		v.room.FreeCPUs, v.room.FreeMemory = v.room.CPUs, v.room.MemoryMiB
		return err
	}); err != nil {
		return nil, err
	}
	var doms []libvirt.Domain
	if err := s.do("list domains", func() (err error) {
		doms, _, err = s.lv.ConnectListAllDomains(1, libvirt.ConnectListDomainsActive|libvirt.ConnectListDomainsInactive)
		return err
	}); err != nil {
		return nil, err
	}
	if len(doms) > maxDomains {
		return nil, fault.Newf(fault.Internal, "%d domains", len(doms))
	}
	for _, d := range doms {
		g, ok, err := s.guest(v, d)
		if err != nil {
			return nil, err
		}
		if ok {
			v.guests[d.Name] = g
		}
	}
	return v, nil
}

// guest reads one domain; false when it is gone since it was listed.
func (s *session) guest(v *view, d libvirt.Domain) (guest, bool, error) {
	var text string
	err := s.do("read domain "+d.Name, func() (err error) {
		text, err = s.lv.DomainGetXMLDesc(d, 0)
		return err
	})
	if libvirt.IsNotFound(cause(err)) {
		return guest{}, false, nil
	}
	if err != nil {
		return guest{}, false, err
	}
	vm, err := s.h.cfg.parse(text)
	if err != nil {
		return guest{}, false, err
	}
	vm.State = driver.StateDefined
	if d.ID != -1 { // remote_protocol.x: of an inactive domain
		vm.State = driver.StateRunning
	}
	if vm.Epoch != 0 {
		vm.Epoch = max(vm.Epoch, v.marks[vm.Name])
	}
	return guest{d, vm}, true, nil
}

// cause is the library's own error: it does not look into ours.
func cause(err error) error {
	for {
		u, ok := err.(interface{ Unwrap() error })
		if !ok {
			return err
		}
		err = u.Unwrap()
	}
}

// readBack looks at one name again and returns fault.Unverified with what check finds wrong.
func (s *session) readBack(name string, check func(g guest, ok bool) string) error {
	v, err := s.look()
	if err != nil {
		return err
	}
	g, ok := v.guests[name]
	if why := check(g, ok); why != "" {
		return refuse(fault.Unverified, why)
	}
	return nil
}

// mayDefine says why a VM cannot be defined so; have is what there is of its name.
func (v *view) mayDefine(have guest, s driver.Spec) error {
	if have.vm.State == driver.StateRunning {
		return refuse(fault.Conflict, "it is running with another definition")
	}
	if v.room.Draining {
		return refuse(fault.Conflict, "the host is draining")
	}
	cpus, memory := v.room.CPUs, v.room.MemoryMiB
	for name, g := range v.guests {
		if name == s.Name {
			continue
		}
		if what := s.Shares(g.vm); what != "" {
			return refuse(fault.Conflict, "VM "+name+" has "+what)
		}
		cpus, memory = cpus-g.vm.Spec.CPUs, memory-g.vm.Spec.MemoryMiB
	}
	if s.CPUs > cpus || s.MemoryMiB > memory {
		return refuse(fault.Conflict, fmt.Sprintf("no room: %d CPUs and %d MiB, and %d and %d are free", s.CPUs, s.MemoryMiB, max(cpus, 0), max(memory, 0)))
	}
	return nil
}

// undefine removes a domain that is off with all that libvirt keeps of it.
func (s *session) undefine(d libvirt.Domain) error {
	err := s.do("undefine domain", func() error {
		return s.lv.DomainUndefineFlags(d, libvirt.DomainUndefineManagedSave|libvirt.DomainUndefineSnapshotsMetadata|
			libvirt.DomainUndefineNvram|libvirt.DomainUndefineCheckpointsMetadata)
	})
	if libvirt.IsNotFound(cause(err)) {
		return nil
	}
	return err
}

// secret is the definition of a secret object.
type secret struct {
	XMLName     xml.Name `xml:"secret"`
	Ephemeral   string   `xml:"ephemeral,attr"`
	Private     string   `xml:"private,attr"`
	Description string   `xml:"description"`
	UUID        string   `xml:"uuid,omitempty"`
	Usage       usage    `xml:"usage"`
}

type usage struct {
	Type   string `xml:"type,attr"`
	Name   string `xml:"name,omitempty"`   // of type tls
	Target string `xml:"target,omitempty"` // of type iscsi
}

// Types of usage, virSecretUsageType.
const (
	usageISCSI = 3
	usageTLS   = 4
)

// Usages of our secret objects. A name of a VM has no space.
const (
	lockUsage   = "rerack lock"
	drainUsage  = "rerack drain"
	epochPrefix = "rerack epoch "
	chapPrefix  = "rerack chap "
)

func epochUsage(name string, epoch uint64) string {
	return fmt.Sprintf("%s%s %d", epochPrefix, name, epoch)
}

func loginUsage(vm, volume string) string { return chapPrefix + vm + " " + volume }

func (s *session) lookAtSecrets(v *view) error {
	if err := s.do("list secrets", func() (err error) {
		v.secrets, _, err = s.lv.ConnectListAllSecrets(1, 0)
		return err
	}); err != nil {
		return err
	}
	for _, x := range v.secrets {
		if x.UsageType != usageTLS {
			continue
		}
		v.room.Draining = v.room.Draining || x.UsageID == drainUsage
		if name, epoch, ok := marked(x.UsageID); ok {
			v.marks[name] = max(v.marks[name], epoch)
		}
	}
	return nil
}

// marked reads the usage of a mark.
func marked(id string) (name string, epoch uint64, ok bool) {
	rest, ok := strings.CutPrefix(id, epochPrefix)
	if !ok {
		return "", 0, false
	}
	name, _, _ = strings.Cut(rest, " ")
	if _, err := fmt.Sscanf(rest, name+" %d", &epoch); err != nil || id != epochUsage(name, epoch) {
		return "", 0, false
	}
	return name, epoch, true
}
