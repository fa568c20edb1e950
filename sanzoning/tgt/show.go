package tgt

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"rerack.dev/rerack/internal/fault"
)

// The daemon answers "show" with text for people (tgt_target_show_all, lld_show and
// iscsi_target_show_connections in tgt 1.0.x). Names that an initiator chose stand in it unescaped, line
// ends included, so the text is read strictly: what does not have the exact shape is refused, and a
// connection that is not understood counts as one of a stranger.

// target is one target as "show" tells of it.
type target struct {
	tid    int32
	name   string
	driver string
	nexus  []uint64 // session numbers
	rules  []string
}

// connection is one connection of a session. Its address is invalid when it is not known for sure.
type connection struct {
	sid     uint64
	cid     uint32
	address netip.Addr
	name    string
}

func unreadable(format string, args ...any) error {
	return &fault.Error{Kind: fault.Internal, What: "read tgtd's answer", Evidence: fmt.Sprintf(format, args...)}
}

// parseTargetLine reads "Target 1: iqn...".
func parseTargetLine(line string) (tid int32, name string, ok bool) {
	rest, ok := strings.CutPrefix(line, "Target ")
	if !ok {
		return 0, "", false
	}
	number, name, ok := strings.Cut(rest, ": ")
	n, err := strconv.ParseInt(number, 10, 32)
	return int32(n), name, ok && err == nil && n > 0 && name != ""
}

// parseDrivers reads the list of drivers with their targets. No initiator has a word in it.
func parseDrivers(text string) (map[int32]string, error) {
	out := map[int32]string{}
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		indented, ok := strings.CutPrefix(line, "        ")
		if !ok {
			continue // a driver
		}
		tid, name, ok := parseTargetLine(indented)
		if !ok {
			return nil, unreadable("line %.80q in the list of drivers", line)
		}
		if _, twice := out[tid]; twice {
			return nil, unreadable("target %d twice in the list of drivers", tid)
		}
		out[tid] = name
	}
	return out, nil
}

// parseTargets reads the description of all targets; known is the list that it has to agree with.
func parseTargets(text string, known map[int32]string) (map[string]*target, error) {
	sections := []string{"    System information:", "    I_T nexus information:", "    LUN information:", "    Account information:",
		"    ACL information:"}
	out := map[string]*target{}
	var at *target
	section := len(sections) // how many were seen of this target
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if tid, name, ok := parseTargetLine(line); ok {
			if known[tid] != name || out[name] != nil || section != len(sections) {
				return nil, unreadable("line %.80q where no target begins", line)
			}
			at, section = &target{tid: tid, name: name}, 0
			out[name] = at
			continue
		}
		if section < len(sections) && line == sections[section] && at != nil {
			section++
			continue
		}
		word, inside := strings.CutPrefix(line, "        ")
		if !inside || section == 0 || at == nil {
			return nil, unreadable("line %.80q out of place", line)
		}
		switch section {
		case 1:
			if v, ok := strings.CutPrefix(word, "Driver: "); ok {
				at.driver = v
			}
		case 2:
			if v, ok := strings.CutPrefix(word, "I_T nexus: "); ok {
				sid, err := strconv.ParseUint(v, 10, 64)
				if err != nil {
					return nil, unreadable("session %.40q", v)
				}
				at.nexus = append(at.nexus, sid)
			}
		case 5:
			at.rules = append(at.rules, word)
		}
	}
	if section != len(sections) || len(out) != len(known) {
		return nil, unreadable("%d targets described of %d", len(out), len(known))
	}
	return out, nil
}

// parseConnections reads the connections of one target. The sessions that the description of the
// targets names and this list lacks are added as unknown: they are ending, or hide.
func parseConnections(text string, nexus []uint64) ([]connection, error) {
	var out []connection
	broken := false // what the present connection says is in doubt
	settle := func() {
		if n := len(out); n > 0 && broken {
			out[n-1].address = netip.Addr{}
		}
		broken = false
	}
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if v, ok := strings.CutPrefix(line, "Session: "); ok {
			sid, err := strconv.ParseUint(v, 10, 64)
			if err != nil {
				return nil, unreadable("session %.40q", v)
			}
			settle()
			out = append(out, connection{sid: sid})
			continue
		}
		if len(out) == 0 {
			return nil, unreadable("line %.80q before the first session", line)
		}
		c := &out[len(out)-1]
		if v, ok := strings.CutPrefix(line, "    Connection: "); ok {
			cid, err := strconv.ParseUint(v, 10, 32)
			broken = broken || err != nil || c.cid != 0
			c.cid = uint32(cid)
		} else if v, ok := strings.CutPrefix(line, "        Initiator: "); ok {
			broken = broken || c.name != ""
			c.name = v
		} else if v, ok := strings.CutPrefix(line, "        IP Address: "); ok {
			a, err := netip.ParseAddr(v)
			broken = broken || err != nil || c.address.IsValid()
			c.address = a.Unmap().WithZone("")
		} else {
			broken = true
		}
	}
	settle()
	for _, sid := range nexus {
		if !slices.ContainsFunc(out, func(c connection) bool { return c.sid == sid }) {
			out = append(out, connection{sid: sid})
		}
	}
	return out, nil
}
