package ovs

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/ovn-kubernetes/libovsdb/ovsdb"

	"rerack.dev/rerack/fabric/driver"
	"rerack.dev/rerack/internal/fault"
)

// snapshot is the bridge as one transaction reads it.
type snapshot struct {
	ports            map[string]*row
	local            *row   // the bridge's own interface, where no cable ends; nil when it has none
	root             string // UUID of the one row of the Open_vSwitch table
	nextCfg, current int    // what the daemon is asked to have done, and has
}

// read reads the bridge, its ports and their links in one transaction.
func (s *Switch) read(ctx context.Context, ses *session) (*snapshot, error) {
	all := func(table string, columns ...string) ovsdb.Operation {
		return ovsdb.Operation{Op: ovsdb.OperationSelect, Table: table, Where: []ovsdb.Condition{}, Columns: columns}
	}
	bridge := all("Bridge", "name", "ports")
	bridge.Where = []ovsdb.Condition{{Column: "name", Function: ovsdb.ConditionEqual, Value: s.cfg.Bridge}}
	ops := []ovsdb.Operation{bridge, all("Port", portColumns...), all("Interface", "_uuid", "link_state"),
		all(database, "_uuid", "next_cfg", "cur_cfg")}
	results, err := ses.transact(ctx, ops...)
	if err != nil {
		return nil, err
	}
	if i, failed := firstError(results); failed {
		return nil, &fault.Error{Kind: results[i].kind(), What: "read " + ops[min(i, len(ops)-1)].Table, Evidence: results[i].text()}
	}
	if len(results[0].Rows) != 1 {
		return nil, &fault.Error{Kind: fault.NotFound, What: "bridge " + s.cfg.Bridge, Evidence: "the switch has no such bridge"}
	}
	snap, err := s.parse(results)
	if err != nil {
		return nil, strange("answer", nil, err)
	}
	return snap, nil
}

func (s *Switch) parse(results []opResult) (*snapshot, error) {
	members, err := uuids(results[0].Rows[0]["ports"])
	if err != nil {
		return nil, err
	}
	mine := make(map[string]bool, len(members))
	for _, u := range members {
		mine[u] = true
	}
	links, err := parseLinks(results[2].Rows)
	if err != nil {
		return nil, err
	}
	snap := &snapshot{ports: make(map[string]*row, len(members))}
	for _, cols := range results[1].Rows {
		if u, err := uuid(cols["_uuid"]); err != nil {
			return nil, err
		} else if !mine[u] {
			continue
		}
		r, err := parsePort(cols)
		if err != nil {
			return nil, err
		}
		if r.name == s.cfg.Bridge {
			snap.local = r
			continue
		}
		r.link = joinLinks(r.interfaces, links)
		snap.ports[r.name] = r
	}
	if snap.nextCfg, snap.current, err = parseCfg(results[3].Rows); err != nil {
		return nil, err
	}
	snap.root, err = uuid(results[3].Rows[0]["_uuid"])
	return snap, err
}

func parseCfg(rows []map[string]json.RawMessage) (next, current int, err error) {
	if len(rows) != 1 {
		return 0, 0, fmt.Errorf("%d rows in table %s", len(rows), database)
	}
	if next, err = one[int](rows[0]["next_cfg"]); err != nil {
		return 0, 0, err
	}
	current, err = one[int](rows[0]["cur_cfg"])
	return next, current, err
}

func parseLinks(rows []map[string]json.RawMessage) (map[string]driver.LinkState, error) {
	links := make(map[string]driver.LinkState, len(rows))
	for _, cols := range rows {
		u, err := uuid(cols["_uuid"])
		if err != nil {
			return nil, err
		}
		state, _, err := optional[string](cols["link_state"])
		if err != nil {
			return nil, err
		}
		switch l := driver.LinkState(state); l {
		case driver.LinkUp, driver.LinkDown:
			links[u] = l
		}
	}
	return links, nil
}

// joinLinks is the link of a port: a bond is up when one member is, and down when all are.
func joinLinks(interfaces []string, links map[string]driver.LinkState) driver.LinkState {
	joined := driver.LinkUnknown
	for i, u := range interfaces {
		switch l := links[u]; {
		case l == driver.LinkUp:
			return l
		case i == 0:
			joined = l
		case l != joined:
			joined = driver.LinkUnknown
		}
	}
	return joined
}

func firstError(results []opResult) (int, bool) {
	for i, r := range results {
		if r.Error != "" {
			return i, true
		}
	}
	return 0, false
}

// kind sorts the error of an operation; the names are those of RFC 7047 section 3.1 and ovsdb-server(7).
func (r opResult) kind() fault.Kind {
	switch r.Error {
	case "constraint violation", "range error", "domain error":
		return fault.Invalid
	case "resources exhausted", "I/O error", "timed out":
		return fault.Busy
	case "permission error":
		return fault.Unauthorized
	case "not supported", "syntax error", "unknown database", "unknown table", "unknown column":
		return fault.Unsupported
	}
	return fault.Internal
}

func (r opResult) text() string {
	if r.Details == "" {
		return r.Error
	}
	return r.Error + ": " + r.Details
}
