package vsphere

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	vimfault "github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"rerack.dev/rerack/hypervisor/driver"
	"rerack.dev/rerack/internal/fault"
)

// snapshot is the host as it was read.
type snapshot struct {
	guests map[string]guest
	marks  map[string]uint64
	keeper *types.ManagedObjectReference // the VM that has the marks; nil: there is none yet
	folder *object.Folder                // of our VMs; nil: there is none yet
	nets   networks
	room   driver.Capacity // whole, nothing taken
}

type guest struct {
	ref types.ManagedObjectReference
	vm  driver.VM
}

// Keys of extraConfig. A VM is ours that names itself there: a clone keeps what the original says.
const (
	keyName   = "rerack.name"
	keyUUID   = "rerack.uuid"
	keyEpoch  = "rerack.epoch"
	keyDisks  = "rerack.disks"
	keyDrain  = "rerack.drain"
	markKey   = "rerack.mark." // and the VM's name
	keeperVM  = "rerack.marks" // no workload can have this name
	folderFor = "rerack."      // and the host's name
	lockName  = "rerack.lock"
)

// recorded is what a VM's own devices cannot say of a volume.
type recorded struct {
	driver.Disk
	LUN string `json:"lunUUID"`
}

// look reads the whole host, and with it the VMs of ours that somebody has moved away from it.
func (p *place) look(ctx context.Context, c Config) (*snapshot, error) {
	s := &snapshot{guests: map[string]guest{}, marks: map[string]uint64{}}
	var host mo.HostSystem
	if err := p.props.RetrieveOne(ctx, p.host.Reference(), []string{"vm", "hardware.cpuInfo", "hardware.memorySize", "network"}, &host); err != nil {
		return nil, err
	}
	if host.Hardware == nil {
		return nil, fault.New(fault.Unreachable, "the host does not show its hardware")
	}
	s.room.CPUs = int(host.Hardware.CpuInfo.NumCpuThreads) * c.CPUShare
	s.room.MemoryMiB = max(host.Hardware.MemorySize>>20-c.ReserveMiB, 0)
	s.room.FreeCPUs, s.room.FreeMemory = s.room.CPUs, s.room.MemoryMiB
	var err error
	if s.nets, err = p.networks(ctx, host.Network); err != nil {
		return nil, err
	}
	refs := host.Vm
	if s.folder, err = p.ownFolder(ctx); err != nil {
		return nil, err
	}
	if s.folder != nil && p.vim.IsVC() {
		var f mo.Folder
		if err := p.props.RetrieveOne(ctx, s.folder.Reference(), []string{"childEntity"}, &f); err != nil {
			return nil, err
		}
		for _, r := range f.ChildEntity {
			if r.Type == "VirtualMachine" && !slices.Contains(refs, r) {
				refs = append(refs, r)
			}
		}
	}
	vms, err := p.vms(ctx, refs)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(vms, func(a, b mo.VirtualMachine) int { return strings.Compare(a.Self.Value, b.Self.Value) })
	for _, vm := range vms {
		s.add(vm)
	}
	for name, g := range s.guests {
		if g.vm.Epoch != 0 {
			g.vm.Epoch = max(g.vm.Epoch, s.marks[name])
			s.guests[name] = g
		}
	}
	return s, nil
}

// vms reads VMs, but those that are gone since they were listed.
func (p *place) vms(ctx context.Context, refs []types.ManagedObjectReference) ([]mo.VirtualMachine, error) {
	refs = slices.Clone(refs)
	for len(refs) > 0 {
		var out []mo.VirtualMachine
		err := p.props.Retrieve(ctx, refs, []string{"name", "config", "summary.config", "runtime.powerState"}, &out)
		var gone *types.ManagedObjectNotFound
		if _, is := vimfault.As(err, &gone); !is || !slices.Contains(refs, gone.Obj) {
			return out, err
		}
		refs = slices.DeleteFunc(refs, func(r types.ManagedObjectReference) bool { return r == gone.Obj })
	}
	return nil, nil
}

// ownFolder is the folder of our VMs in vCenter; a host by itself has but one folder.
func (p *place) ownFolder(ctx context.Context) (*object.Folder, error) {
	if !p.vim.IsVC() {
		return p.vmFolder, nil
	}
	ref, err := object.NewSearchIndex(p.vim).FindChild(ctx, p.vmFolder, folderFor+p.hostName)
	if err != nil || ref == nil {
		return nil, err
	}
	f, ok := ref.(*object.Folder)
	if !ok {
		return nil, fault.Newf(fault.Conflict, "%s%s in the inventory is no folder", folderFor, p.hostName)
	}
	return f, nil
}

func (s *snapshot) add(x mo.VirtualMachine) {
	extra := map[string]string{}
	if x.Config != nil {
		if x.Config.Template {
			return // it cannot run
		}
		for _, o := range x.Config.ExtraConfig {
			if v := o.GetOptionValue(); v != nil && strings.HasPrefix(v.Key, "rerack.") {
				extra[v.Key] = fmt.Sprint(v.Value)
			}
		}
	}
	if x.Name == keeperVM && extra[keyName] == keeperVM {
		s.keep(x.Self, extra)
		return
	}
	vm := driver.VM{Name: x.Name, State: driver.StateDefined, UUID: strings.ToLower(x.Summary.Config.Uuid)}
	if x.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOff { // a suspended one goes on when anybody says so
		vm.State = driver.StateRunning
	}
	vm.Spec = driver.Spec{Name: x.Name, UUID: vm.UUID, CPUs: int(x.Summary.Config.NumCpu), MemoryMiB: int64(x.Summary.Config.MemorySizeMB), Arch: "x86_64", Firmware: "bios"}
	if x.Config != nil {
		s.describe(&vm, *x.Config, extra)
	}
	if _, taken := s.guests[vm.Name]; taken { // in another folder; which of them is ours does not matter: neither is certain
		vm.Name += " (" + x.Self.Value + ")"
		vm.Epoch, vm.Spec.Epoch = 0, 0
	}
	s.guests[vm.Name] = guest{x.Self, vm}
}

// keep reads the marks.
func (s *snapshot) keep(ref types.ManagedObjectReference, extra map[string]string) {
	s.keeper = &ref
	s.room.Draining = extra[keyDrain] != ""
	for k, v := range extra {
		if name, ok := strings.CutPrefix(k, markKey); ok {
			if n, err := strconv.ParseUint(v, 10, 64); err == nil {
				s.marks[name] = n
			}
		}
	}
}

func (s *snapshot) describe(vm *driver.VM, c types.VirtualMachineConfigInfo, extra map[string]string) {
	vm.UUID = strings.ToLower(c.Uuid)
	vm.Spec.UUID, vm.Spec.CPUs, vm.Spec.MemoryMiB = vm.UUID, int(c.Hardware.NumCPU), int64(c.Hardware.MemoryMB)
	if c.Firmware == string(types.GuestOsDescriptorFirmwareTypeEfi) {
		vm.Spec.Firmware = "uefi"
	}
	var had []recorded
	if extra[keyName] == vm.Name && strings.EqualFold(extra[keyUUID], vm.UUID) {
		if n, err := strconv.ParseUint(extra[keyEpoch], 10, 64); err == nil && json.Unmarshal([]byte(extra[keyDisks]), &had) == nil {
			vm.Epoch, vm.Spec.Epoch = n, n
		}
	}
	disks := 0
	for _, d := range c.Hardware.Device {
		switch x := d.(type) {
		case types.BaseVirtualEthernetCard:
			card := x.GetVirtualEthernetCard()
			vm.Spec.NICs = append(vm.Spec.NICs, driver.NIC{MAC: strings.ToLower(card.MacAddress), VLAN: s.nets.vlan(card.Backing)})
		case *types.VirtualDisk:
			raw, is := x.Backing.(*types.VirtualDiskRawDiskMappingVer1BackingInfo)
			if is && disks < len(had) && raw.LunUuid == had[disks].LUN {
				vm.Spec.Disks = append(vm.Spec.Disks, had[disks].Disk)
			} else if vm.Epoch != 0 {
				// A disk that we did not give it: it is there, and no volume of ours.
				vm.Spec.Disks = append(vm.Spec.Disks, driver.Disk{Volume: fmt.Sprint("unknown-", disks), FC: &driver.FC{WWPN: "ff:ff:ff:ff:ff:ff:ff:ff", LUN: disks}})
			}
			disks++
		}
	}
}

// mayDefine says why a VM cannot be defined so; have is what there is of its name.
func (s *snapshot) mayDefine(have guest, spec driver.Spec) error {
	if have.vm.State == driver.StateRunning {
		return refuse(fault.Conflict, "it is running with another definition")
	}
	if s.room.Draining {
		return refuse(fault.Conflict, "the host is draining")
	}
	cpus, memory := s.room.CPUs, s.room.MemoryMiB
	for name, g := range s.guests {
		if name == spec.Name {
			continue
		}
		if what := spec.Shares(g.vm); what != "" {
			return refuse(fault.Conflict, "VM "+name+" has "+what)
		}
		cpus, memory = cpus-g.vm.Spec.CPUs, memory-g.vm.Spec.MemoryMiB
	}
	if spec.CPUs > cpus || spec.MemoryMiB > memory {
		return refuse(fault.Conflict, fmt.Sprintf("no room: %d CPUs and %d MiB, and %d and %d are free", spec.CPUs, spec.MemoryMiB, max(cpus, 0), max(memory, 0)))
	}
	return nil
}
