package vsphere

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"rerack.dev/rerack/hypervisor/driver"
	"rerack.dev/rerack/internal/fault"
)

// Limits of virtual hardware: a SCSI controller has 15 disks, unit 7 being itself, and a VM four of them
// (VMware Configuration Maximums).
const (
	perController  = 15
	maxControllers = 4
	maxCards       = 10
)

// config is the definition of a VM of ours.
func (h *Host) config(ctx context.Context, p *place, s *snapshot, spec driver.Spec) (types.VirtualMachineConfigSpec, error) {
	c := types.VirtualMachineConfigSpec{Name: spec.Name, Uuid: strings.ToLower(spec.UUID), NumCPUs: int32(spec.CPUs), MemoryMB: spec.MemoryMiB, //nolint:gosec // bounded by Validate
		GuestId: string(types.VirtualMachineGuestOsIdentifierOtherGuest64), Firmware: string(types.GuestOsDescriptorFirmwareTypeBios),
		Files: &types.VirtualMachineFileInfo{VmPathName: "[" + h.cfg.Datastore + "]"}}
	if spec.Firmware == "uefi" {
		c.Firmware = string(types.GuestOsDescriptorFirmwareTypeEfi)
		c.BootOptions = &types.VirtualMachineBootOptions{EfiSecureBootEnabled: types.NewBool(false)} // the network boot chain is not signed by Microsoft
	}
	switch {
	case spec.Arch != "x86_64":
		return c, refuse(fault.Unsupported, "the host runs x86_64, not "+spec.Arch)
	case len(spec.NICs) > maxCards:
		return c, refuse(fault.Unsupported, fmt.Sprintf("%d NICs, and a VM has %d at most", len(spec.NICs), maxCards))
	case len(spec.Disks) > perController*maxControllers:
		return c, refuse(fault.Unsupported, fmt.Sprintf("%d disks, and a VM has %d at most", len(spec.Disks), perController*maxControllers))
	}
	extra := map[string]string{keyName: spec.Name, keyUUID: c.Uuid, keyEpoch: strconv.FormatUint(spec.Epoch, 10)}
	for i, n := range spec.NICs {
		g, err := s.nets.of(n.VLAN)
		if err != nil {
			return c, err
		}
		card := &types.VirtualVmxnet3{}
		card.Key, card.Backing = int32(-100-i), g.backing //nolint:gosec // few
		card.AddressType, card.MacAddress = string(types.VirtualEthernetCardMacTypeManual), n.MAC
		card.Connectable = &types.VirtualDeviceConnectInfo{StartConnected: true, Connected: true, AllowGuestControl: true}
		c.DeviceChange = append(c.DeviceChange, add(card))
		// The identity's MAC need not be in VMware's range.
		extra[fmt.Sprintf("ethernet%d.checkMACAddress", i)] = "FALSE"
	}
	disks, err := h.disks(ctx, p, spec, &c)
	if err != nil {
		return c, err
	}
	extra[keyDisks] = disks
	for _, k := range sorted(extra) {
		c.ExtraConfig = append(c.ExtraConfig, &types.OptionValue{Key: k, Value: extra[k]})
	}
	return c, nil
}

func add(d types.BaseVirtualDevice) *types.VirtualDeviceConfigSpec {
	return &types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationAdd, Device: d}
}

// disks adds the volumes as raw device mappings of LUNs that the host sees, and returns what is recorded.
func (h *Host) disks(ctx context.Context, p *place, spec driver.Spec, c *types.VirtualMachineConfigSpec) (string, error) {
	had := []recorded{}
	var luns map[string]lun
	for i, d := range spec.Public().Disks {
		if luns == nil {
			var err error
			if luns, err = p.luns(ctx, spec); err != nil {
				return "", err
			}
		}
		l, sees := luns[address(d)]
		if !sees {
			return "", &fault.Error{Kind: fault.Conflict, What: "volume " + d.Volume, Evidence: "the host does not see " + address(d),
				Next: "let the host log in to that target (its own initiator and CHAP), and let the array show it the LUN"}
		}
		controller := int32(-1 - i/perController) //nolint:gosec // few
		if i%perController == 0 {
			scsi := &types.ParaVirtualSCSIController{}
			scsi.Key, scsi.BusNumber, scsi.SharedBus = controller, int32(i/perController), types.VirtualSCSISharingNoSharing //nolint:gosec // few
			c.DeviceChange = append(c.DeviceChange, add(scsi))
		}
		unit := int32(i % perController) //nolint:gosec // few
		if unit >= 7 {
			unit++
		}
		disk := &types.VirtualDisk{}
		disk.Key, disk.ControllerKey, disk.UnitNumber = int32(-200-i), controller, &unit //nolint:gosec // few
		disk.CapacityInBytes, disk.CapacityInKB = l.bytes, l.bytes/1024
		disk.Backing = &types.VirtualDiskRawDiskMappingVer1BackingInfo{LunUuid: l.uuid, DeviceName: l.device, DiskMode: string(types.VirtualDiskModeIndependent_persistent),
			CompatibilityMode: string(types.VirtualDiskCompatibilityModePhysicalMode)}
		change := add(disk)
		change.FileOperation = types.VirtualDeviceConfigSpecFileOperationCreate // of the mapping, not of the LUN
		c.DeviceChange = append(c.DeviceChange, change)
		had = append(had, recorded{d, l.uuid})
	}
	text, err := json.Marshal(had)
	if err != nil {
		return "", &fault.Error{Kind: fault.Internal, What: "record the volumes", Err: err}
	}
	return string(text), nil
}

// lun is a LUN that the host sees.
type lun struct {
	uuid, device string
	bytes        int64
}

// address names a LUN by its target.
func address(d driver.Disk) string {
	if d.FC != nil {
		return fmt.Sprintf("LUN %d of %s", d.FC.LUN, d.FC.WWPN)
	}
	return fmt.Sprintf("LUN %d of %s", d.ISCSI.LUN, d.ISCSI.Target)
}

// luns maps addresses to what the host sees there. When one of the volumes is missing it looks again once: it
// was unmasked just now.
func (p *place) luns(ctx context.Context, spec driver.Spec) (map[string]lun, error) {
	out, err := p.seen(ctx)
	if err != nil {
		return nil, err
	}
	for _, d := range spec.Disks {
		if _, sees := out[address(d)]; sees {
			continue
		}
		if _, err := methods.RescanAllHba(ctx, p.vim, &types.RescanAllHba{This: p.storage}); err != nil {
			return nil, err
		}
		return p.seen(ctx)
	}
	return out, nil
}

func (p *place) seen(ctx context.Context) (map[string]lun, error) {
	var sys mo.HostStorageSystem
	if err := p.props.RetrieveOne(ctx, p.storage, []string{"storageDeviceInfo"}, &sys); err != nil {
		return nil, err
	}
	out := map[string]lun{}
	if sys.StorageDeviceInfo == nil || sys.StorageDeviceInfo.ScsiTopology == nil {
		return out, nil
	}
	devices := map[string]lun{}
	for _, b := range sys.StorageDeviceInfo.ScsiLun {
		if d, ok := b.(*types.HostScsiDisk); ok {
			devices[d.Key] = lun{uuid: d.Uuid, device: d.DeviceName, bytes: d.Capacity.Block * int64(d.Capacity.BlockSize)}
		}
	}
	for _, a := range sys.StorageDeviceInfo.ScsiTopology.Adapter {
		for _, t := range a.Target {
			var name string
			switch x := t.Transport.(type) {
			case *types.HostInternetScsiTargetTransport:
				name = strings.ToLower(x.IScsiName)
			case *types.HostFibreChannelTargetTransport:
				name = wwpn(uint64(x.PortWorldWideName)) //nolint:gosec // 64 bits, whichever sign they are given
			default:
				continue
			}
			for _, l := range t.Lun {
				if d, ok := devices[l.ScsiLun]; ok {
					out[fmt.Sprintf("LUN %d of %s", l.Lun, name)] = d
				}
			}
		}
	}
	return out, nil
}

func wwpn(n uint64) string {
	digits := fmt.Sprintf("%016x", n)
	var pairs []string
	for i := 0; i < len(digits); i += 2 {
		pairs = append(pairs, digits[i:i+2])
	}
	return strings.Join(pairs, ":")
}
