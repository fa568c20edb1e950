package vsphere

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"rerack.dev/rerack/internal/fault"
)

// networks are the port groups that VMs of the host can be on.
type networks []portGroup

type portGroup struct {
	name    string
	vlan    int
	backing types.BaseVirtualDeviceBackingInfo
}

// networks reads the standard and the distributed port groups of the host. A port group with a trunk or a
// private VLAN is none that a VM of ours may be on.
func (p *place) networks(ctx context.Context, refs []types.ManagedObjectReference) (networks, error) {
	var sys mo.HostNetworkSystem
	if err := p.props.RetrieveOne(ctx, p.network, []string{"networkInfo"}, &sys); err != nil {
		return nil, err
	}
	var out networks
	if sys.NetworkInfo != nil {
		for _, g := range sys.NetworkInfo.Portgroup {
			vmkernel := slices.ContainsFunc(sys.NetworkInfo.Vnic, func(v types.HostVirtualNic) bool { return v.Portgroup == g.Spec.Name })
			if !vmkernel {
				out = append(out, portGroup{g.Spec.Name, int(g.Spec.VlanId), &types.VirtualEthernetCardNetworkBackingInfo{
					VirtualDeviceDeviceBackingInfo: types.VirtualDeviceDeviceBackingInfo{DeviceName: g.Spec.Name}}})
			}
		}
	}
	var distributed []types.ManagedObjectReference
	for _, r := range refs {
		if r.Type == "DistributedVirtualPortgroup" {
			distributed = append(distributed, r)
		}
	}
	if len(distributed) > 0 {
		var groups []mo.DistributedVirtualPortgroup
		if err := p.props.Retrieve(ctx, distributed, []string{"name", "config"}, &groups); err != nil {
			return nil, err
		}
		for _, g := range groups {
			x, ok, err := p.distributed(ctx, g)
			if err != nil {
				return nil, err
			}
			if ok {
				out = append(out, x)
			}
		}
	}
	slices.SortFunc(out, func(a, b portGroup) int { return strings.Compare(a.name, b.name) })
	return out, nil
}

func (p *place) distributed(ctx context.Context, g mo.DistributedVirtualPortgroup) (portGroup, bool, error) {
	s, ok := g.Config.DefaultPortConfig.(*types.VMwareDVSPortSetting)
	if !ok || g.Config.DistributedVirtualSwitch == nil {
		return portGroup{}, false, nil
	}
	v, ok := s.Vlan.(*types.VmwareDistributedVirtualSwitchVlanIdSpec)
	if !ok || v.VlanId == 0 || g.Config.Uplink != nil && *g.Config.Uplink {
		return portGroup{}, false, nil
	}
	var sw mo.DistributedVirtualSwitch
	if err := p.props.RetrieveOne(ctx, *g.Config.DistributedVirtualSwitch, []string{"uuid"}, &sw); err != nil {
		return portGroup{}, false, err
	}
	return portGroup{g.Name, int(v.VlanId), &types.VirtualEthernetCardDistributedVirtualPortBackingInfo{
		Port: types.DistributedVirtualSwitchPortConnection{SwitchUuid: sw.Uuid, PortgroupKey: g.Config.Key}}}, true, nil
}

// of is the port group of a VLAN, the first by name when there are several.
func (n networks) of(vlan int) (portGroup, error) {
	for _, g := range n {
		if g.vlan == vlan {
			return g, nil
		}
	}
	return portGroup{}, &fault.Error{Kind: fault.Unsupported, What: fmt.Sprintf("connect to VLAN %d", vlan), Evidence: "the host has no port group of this VLAN for VMs",
		Next: fmt.Sprintf("add one with VLAN ID %d to the host's switch", vlan)}
}

// vlan is 0 for a NIC on a network that is none of these.
func (n networks) vlan(b types.BaseVirtualDeviceBackingInfo) int {
	for _, g := range n {
		switch x := b.(type) {
		case *types.VirtualEthernetCardNetworkBackingInfo:
			if y, ok := g.backing.(*types.VirtualEthernetCardNetworkBackingInfo); ok && x.DeviceName == y.DeviceName {
				return g.vlan
			}
		case *types.VirtualEthernetCardDistributedVirtualPortBackingInfo:
			if y, ok := g.backing.(*types.VirtualEthernetCardDistributedVirtualPortBackingInfo); ok && x.Port.PortgroupKey == y.Port.PortgroupKey {
				return g.vlan
			}
		}
	}
	return 0
}
