package ovs

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/ovn-kubernetes/libovsdb/ovsdb"

	"rerack.dev/rerack/fabric/driver"
	"rerack.dev/rerack/internal/fault"
)

// The keys of Port.external_ids that are ours. Every other key is left alone.
const (
	EpochKey = "rerack-epoch" // decimal
	OwnerKey = "rerack-owner"
)

// The values of Port.vlan_mode that matter here (ovs-vswitchd.conf.db(5), Port, VLAN Configuration).
const (
	modeAccess         = "access"
	modeTrunk          = "trunk"
	modeNativeTagged   = "native-tagged"
	modeNativeUntagged = "native-untagged"
	modeTunnel         = "dot1q-tunnel"
)

// vlans is the part of a Port row that says which frames pass.
type vlans struct {
	Mode      string // "" = the default: access when there is a tag, else trunk
	Tag       int    // meaningless without HasTag
	HasTag    bool
	Trunks    []int // ascending; empty = every VLAN, unless the port is an access port
	Protected bool
}

// row is one row of the Port table.
type row struct {
	uuid        string
	name        string
	interfaces  []string
	vlans       vlans
	externalIDs map[string]string
	epoch       uint64
	link        driver.LinkState
}

// portColumns is what is read of a Port; casColumns is what must not have changed meanwhile when one is
// written.
var (
	casColumns  = []string{"vlan_mode", "tag", "trunks", "protected", "external_ids"}
	portColumns = append([]string{"_uuid", "name", "interfaces"}, casColumns...)
)

func parsePort(cols map[string]json.RawMessage) (*row, error) {
	var r row
	var errs [8]error
	r.uuid, errs[0] = uuid(cols["_uuid"])
	r.name, errs[1] = one[string](cols["name"])
	r.interfaces, errs[2] = uuids(cols["interfaces"])
	r.vlans.Mode, _, errs[3] = optional[string](cols["vlan_mode"])
	r.vlans.Tag, r.vlans.HasTag, errs[4] = optional[int](cols["tag"])
	r.vlans.Trunks, errs[5] = set[int](cols["trunks"])
	r.vlans.Protected, errs[6] = one[bool](cols["protected"])
	r.externalIDs, errs[7] = stringMap(cols["external_ids"])
	for _, err := range errs {
		if err != nil {
			return nil, fmt.Errorf("port %q: %w", r.name, err)
		}
	}
	slices.Sort(r.vlans.Trunks)
	if text, ok := r.externalIDs[EpochKey]; ok {
		epoch, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("port %q: external_ids:%s is %q, not a number", r.name, EpochKey, text)
		}
		r.epoch = epoch
	}
	return &r, nil
}

// port says what the row means.
func (r *row) port(quarantine int) driver.Port {
	p := driver.Port{Name: r.name, Link: r.link, Epoch: r.epoch, Owner: r.externalIDs[OwnerKey]}
	v := r.vlans
	switch v.mode() {
	case modeAccess, modeTunnel:
		p.Untagged = v.Tag
		p.Shut = v.quarantined(quarantine)
		if p.Shut {
			p.Untagged = 0
		}
	case modeNativeUntagged:
		p.Untagged = v.Tag
		p.Tagged = slices.DeleteFunc(slices.Clone(v.Trunks), func(id int) bool { return id == v.Tag })
		p.AllVLANs = len(v.Trunks) == 0
	case modeNativeTagged:
		p.Tagged = slices.Clone(v.Trunks)
		if v.HasTag && !slices.Contains(p.Tagged, v.Tag) && len(v.Trunks) > 0 {
			p.Tagged = slices.Sorted(slices.Values(append(p.Tagged, v.Tag)))
		}
		p.AllVLANs = len(v.Trunks) == 0
	default:
		p.Tagged = slices.Clone(v.Trunks)
		p.AllVLANs = len(v.Trunks) == 0
	}
	return p
}

// mode resolves the default mode.
func (v vlans) mode() string {
	switch {
	case v.Mode != "":
		return v.Mode
	case v.HasTag:
		return modeAccess
	}
	return modeTrunk
}

func (v vlans) quarantined(quarantine int) bool {
	return v.mode() == modeAccess && v.HasTag && v.Tag == quarantine && v.Protected
}

// carries says whether frames of a VLAN pass.
func (v vlans) carries(id int) bool {
	switch v.mode() {
	case modeAccess, modeTunnel:
		return v.Tag == id
	case modeNativeTagged, modeNativeUntagged:
		if v.Tag == id {
			return true
		}
	}
	return len(v.Trunks) == 0 || slices.Contains(v.Trunks, id)
}

// wanted is what the row of a port must say for a setting.
func wanted(s driver.Setting, quarantine int) (vlans, error) {
	bad := func(why string) error {
		return &fault.Error{Kind: fault.Invalid, What: "set port " + s.Port, Evidence: why}
	}
	if s.Shut {
		return vlans{Mode: modeAccess, Tag: quarantine, HasTag: true, Protected: true}, nil
	}
	tagged := slices.Sorted(slices.Values(s.Tagged))
	if s.Untagged == quarantine || slices.Contains(tagged, quarantine) {
		return vlans{}, bad(fmt.Sprintf("VLAN %d is the quarantine", quarantine))
	}
	switch {
	case s.Untagged == 0 && len(tagged) == 0:
		// An empty row means every VLAN to Open vSwitch.
		return vlans{}, bad("neither a VLAN nor shut")
	case len(tagged) == 0:
		return vlans{Mode: modeAccess, Tag: s.Untagged, HasTag: true}, nil
	case s.Untagged == 0:
		return vlans{Mode: modeTrunk, Trunks: tagged}, nil
	case slices.Contains(tagged, s.Untagged):
		return vlans{}, bad(fmt.Sprintf("VLAN %d both tagged and untagged", s.Untagged))
	}
	return vlans{Mode: modeNativeUntagged, Tag: s.Untagged, HasTag: true, Trunks: tagged}, nil
}

func (v vlans) equal(w vlans) bool {
	return v.mode() == w.mode() && v.HasTag == w.HasTag && v.Tag == w.Tag &&
		slices.Equal(v.Trunks, w.Trunks) && v.Protected == w.Protected
}

// columns encodes the VLAN columns.
func (v vlans) columns() ovsdb.Row {
	mode, tag := []any{}, []any{}
	if v.Mode != "" {
		mode = append(mode, v.Mode)
	}
	if v.HasTag {
		tag = append(tag, v.Tag)
	}
	trunks := make([]any, 0, len(v.Trunks))
	for _, id := range v.Trunks {
		trunks = append(trunks, id)
	}
	return ovsdb.Row{
		"vlan_mode": ovsdb.OvsSet{GoSet: mode},
		"tag":       ovsdb.OvsSet{GoSet: tag},
		"trunks":    ovsdb.OvsSet{GoSet: trunks},
		"protected": v.Protected,
	}
}

// unchanged is the operation that fails the transaction when somebody wrote the row since it was read.
func (r *row) unchanged() ovsdb.Operation {
	ids := map[any]any{}
	for k, v := range r.externalIDs {
		ids[k] = v
	}
	cols := r.vlans.columns()
	cols["external_ids"] = ovsdb.OvsMap{GoMap: ids}
	return ovsdb.Operation{Op: ovsdb.OperationWait, Table: "Port", Timeout: new(int), Where: r.where(),
		Columns: casColumns, Until: string(ovsdb.WaitConditionEqual), Rows: []ovsdb.Row{cols}}
}

// write is the operations that set the VLANs and our two keys, and nothing else, of the row.
func (r *row) write(v vlans, epoch uint64, owner string) []ovsdb.Operation {
	ours := map[any]any{EpochKey: strconv.FormatUint(epoch, 10)}
	if owner != "" {
		ours[OwnerKey] = owner
	}
	return []ovsdb.Operation{
		{Op: ovsdb.OperationUpdate, Table: "Port", Where: r.where(), Row: v.columns()},
		{Op: ovsdb.OperationMutate, Table: "Port", Where: r.where(), Mutations: []ovsdb.Mutation{
			// Inserting keeps the value of a key that is there, so ours go first.
			{Column: "external_ids", Mutator: ovsdb.MutateOperationDelete, Value: ovsdb.OvsSet{GoSet: []any{EpochKey, OwnerKey}}},
			{Column: "external_ids", Mutator: ovsdb.MutateOperationInsert, Value: ovsdb.OvsMap{GoMap: ours}},
		}},
	}
}

func (r *row) where() []ovsdb.Condition { return byUUID(r.uuid) }

func byUUID(u string) []ovsdb.Condition {
	return []ovsdb.Condition{{Column: "_uuid", Function: ovsdb.ConditionEqual, Value: ovsdb.UUID{GoUUID: u}}}
}

func sortedNames(rows map[string]*row) []string { return slices.Sorted(maps.Keys(rows)) }
