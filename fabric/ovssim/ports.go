package ovssim

import (
	"maps"
	"slices"
	"strconv"

	"github.com/google/uuid"
	"github.com/ovn-kubernetes/libovsdb/ovsdb"
)

// Backend is told what the switch really does with its ports.
type Backend interface {
	// PortChanged is called after a commit, before it is answered, for each port that changed. Calls come
	// one after another. It may call SetLink, and nothing else that waits for this switch.
	PortChanged(port string, s PortState)
}

// PortState is which frames a port lets through, and who said so.
type PortState struct {
	Untagged    int
	Tagged      []int // ascending
	AllVLANs    bool  // every VLAN, whatever Tagged says
	Quarantined bool  // alone in the quarantine VLAN: for the world, shut
	Epoch       uint64
	Owner       string
}

func (s PortState) equal(t PortState) bool {
	return s.Untagged == t.Untagged && slices.Equal(s.Tagged, t.Tagged) && s.AllVLANs == t.AllVLANs &&
		s.Quarantined == t.Quarantined && s.Epoch == t.Epoch && s.Owner == t.Owner
}

// Port is one port of the switch as it was before anybody used OVSDB. A port with neither VLAN trunks
// all of them, as on a real one.
type Port struct {
	Name     string
	Untagged int
	Tagged   []int
	LinkUp   bool
	// ExternalIDs other people's software left there.
	ExternalIDs map[string]string
}

func (p Port) row(iface string) row {
	r := row{
		"name": str(p.Name), "interfaces": {set: []any{ovsdb.UUID{GoUUID: iface}}},
		"vlan_mode": {}, "tag": {}, "trunks": {}, "protected": {set: []any{false}},
		"external_ids": {m: map[any]any{}}, "other_config": {m: map[any]any{}},
	}
	for k, v := range p.ExternalIDs {
		r["external_ids"].m[k] = v
	}
	var trunks datum
	for _, id := range p.Tagged {
		trunks.set = append(trunks.set, id)
	}
	trunks.normalize()
	r["trunks"] = trunks
	if p.Untagged != 0 {
		r["tag"] = datum{set: []any{p.Untagged}}
		if len(p.Tagged) > 0 {
			r["vlan_mode"] = str("native-untagged")
		}
	}
	return r
}

func str(s string) datum { return datum{set: []any{s}} }

// state reads a Port row as ovs-vswitchd does (ovs-vswitchd.conf.db(5), Port, VLAN Configuration).
func state(r row, quarantine int) PortState {
	s := PortState{}
	if text, ok := r["external_ids"].m["rerack-epoch"].(string); ok {
		s.Epoch, _ = strconv.ParseUint(text, 10, 64) // anything else counts as never set
	}
	s.Owner, _ = r["external_ids"].m["rerack-owner"].(string)
	tag := 0
	hasTag := len(r["tag"].set) == 1
	if hasTag {
		tag = r["tag"].set[0].(int)
	}
	mode := "trunk"
	switch {
	case len(r["vlan_mode"].set) == 1:
		mode = r["vlan_mode"].set[0].(string)
	case hasTag:
		mode = "access"
	}
	for _, id := range r["trunks"].set {
		s.Tagged = append(s.Tagged, id.(int))
	}
	switch mode {
	case "access", "dot1q-tunnel":
		s.Untagged, s.Tagged = tag, nil
		if mode == "access" && hasTag && tag == quarantine && r["protected"].has(true) {
			s.Untagged, s.Quarantined = 0, true
		}
		return s
	case "native-untagged":
		s.Untagged = tag
		s.AllVLANs = len(s.Tagged) == 0
		s.Tagged = slices.DeleteFunc(s.Tagged, func(id int) bool { return id == tag })
		return s
	}
	s.AllVLANs = len(s.Tagged) == 0
	if mode == "native-tagged" && hasTag && !s.AllVLANs && !slices.Contains(s.Tagged, tag) {
		s.Tagged = slices.Sorted(slices.Values(append(s.Tagged, tag)))
	}
	return s
}

// build makes the rows of a switch with one bridge.
func build(bridge string, ports []Port) tables {
	t := tables{"Open_vSwitch": {}, "Bridge": {}, "Port": {}, "Interface": {}}
	members := datum{}
	local := Port{Name: bridge, LinkUp: true}
	for _, p := range append([]Port{local}, ports...) {
		portID, ifaceID := uuid.NewString(), uuid.NewString()
		t["Port"][portID] = p.row(ifaceID)
		kind := "system"
		if p.Name == bridge {
			kind = "internal"
		}
		t["Interface"][ifaceID] = row{"name": str(p.Name), "type": str(kind), "admin_state": str("up"),
			"link_state": link(p.LinkUp), "external_ids": {m: map[any]any{}}}
		members.set = append(members.set, ovsdb.UUID{GoUUID: portID})
	}
	members.normalize()
	bridgeID := uuid.NewString()
	t["Bridge"][bridgeID] = row{"name": str(bridge), "ports": members, "datapath_type": str(""),
		"external_ids": {m: map[any]any{}}, "other_config": {m: map[any]any{}}}
	t["Open_vSwitch"][uuid.NewString()] = row{
		"bridges":  {set: []any{ovsdb.UUID{GoUUID: bridgeID}}},
		"next_cfg": {set: []any{1}}, "cur_cfg": {set: []any{1}},
		"ovs_version": str("3.1.0"), "db_version": str("8.3.1"), "system_type": str("rerack-lab"),
		"external_ids": {m: map[any]any{}}}
	return t
}

func link(up bool) datum {
	if up {
		return str("up")
	}
	return str("down")
}

// with returns the row with one column replaced.
func (r row) with(column string, d datum) row {
	next := maps.Clone(r)
	next[column] = d
	return next
}
