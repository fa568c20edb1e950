package brocadesim

import (
	"crypto/md5"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Defined is the defined configuration: zones, aliases, and configurations, which are lists of zones.
type Defined struct {
	Zones   map[string]Zone     `json:"zones"`
	Aliases map[string][]string `json:"aliases"`
	Cfgs    map[string][]string `json:"cfgs"`
}

// database is the zoning database: what is defined, and what of it is in force.
type database struct {
	Defined
	active    string
	effective []Zone // by name, as it was when it was enabled
}

// transaction is edits that are not committed.
type transaction struct {
	session     string // token of the login that opened it
	user        string
	application string
	via         string
	token       uint32
	opened      time.Time
	pending     Defined
}

// person is the session of somebody who is not on the REST interface.
const person = "person"

func newDatabase(cfg Config) database {
	db := database{Defined: Defined{Zones: map[string]Zone{}, Aliases: map[string][]string{}, Cfgs: map[string][]string{}}}
	for _, z := range cfg.Zones {
		db.Zones[z.Name] = z.clone()
		db.Cfgs[cfg.Active] = append(db.Cfgs[cfg.Active], z.Name)
	}
	if cfg.Active != "" && db.Cfgs[cfg.Active] == nil {
		// A configuration has at least one zone.
		db.Zones["placeholder"] = Zone{Name: "placeholder", Members: []string{"00:00:00:00:00:00:00:01"}}
		db.Cfgs[cfg.Active] = []string{"placeholder"}
	}
	maps.Copy(db.Aliases, cfg.Aliases)
	return db
}

func (z Zone) clone() Zone {
	z.Members, z.Principals = slices.Clone(z.Members), slices.Clone(z.Principals)
	return z
}

func (d Defined) clone() Defined {
	out := Defined{Zones: map[string]Zone{}, Aliases: map[string][]string{}, Cfgs: map[string][]string{}}
	for n, z := range d.Zones {
		out.Zones[n] = z.clone()
	}
	for n, m := range d.Aliases {
		out.Aliases[n] = slices.Clone(m)
	}
	for n, m := range d.Cfgs {
		out.Cfgs[n] = slices.Clone(m)
	}
	return out
}

func (db database) clone() database {
	return database{Defined: db.Defined.clone(), active: db.active, effective: db.effectiveCopy()}
}

func (db database) effectiveCopy() []Zone {
	out := make([]Zone, 0, len(db.effective))
	for _, z := range db.effective {
		out = append(out, z.clone())
	}
	return out
}

// checksum is over everything that a commit changes.
func (db database) checksum() string {
	raw, err := json.Marshal(struct {
		Defined
		Active    string
		Effective []Zone
	}{db.Defined, db.active, db.effective})
	if err != nil {
		panic(err) // these types always encode
	}
	sum := md5.Sum(raw)
	return hex.EncodeToString(sum[:])
}

var wwn = regexp.MustCompile(`^[0-9a-f]{2}(:[0-9a-f]{2}){7}$`)

// enable puts a configuration in force.
func (db *database) enable(name string) error {
	zones, ok := db.Cfgs[name]
	if !ok || len(zones) == 0 {
		return fmt.Errorf("cfg %q is not defined or has no zones", name)
	}
	var effective []Zone
	for _, n := range slices.Sorted(slices.Values(zones)) {
		z, ok := db.Zones[n]
		if !ok {
			return fmt.Errorf("zone %q of cfg %q is not defined", n, name)
		}
		z = z.clone()
		var err error
		if z.Members, err = db.resolve(z.Members); err == nil {
			z.Principals, err = db.resolve(z.Principals)
		}
		if err != nil {
			return fmt.Errorf("zone %q: %w", n, err)
		}
		if len(z.Members) == 0 || (z.Peer && len(z.Principals) == 0) {
			return fmt.Errorf("zone %q has no members", n)
		}
		effective = append(effective, z)
	}
	db.active, db.effective = name, effective
	return nil
}

// resolve replaces aliases by what they stand for.
func (db *database) resolve(members []string) ([]string, error) {
	var out []string
	for _, m := range members {
		lower := strings.ToLower(m)
		alias, isAlias := db.Aliases[m]
		switch {
		case isAlias:
			out = append(out, alias...)
		case wwn.MatchString(lower):
			out = append(out, lower)
		default:
			return nil, fmt.Errorf("member %q is neither a WWN nor an alias", m)
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// open starts a transaction. The caller holds mu.
func (s *Switch) open(session, user, via, application string) {
	s.tokens++
	s.txn = &transaction{session: session, user: user, via: via, application: application, token: s.tokens,
		opened: s.cfg.Now(), pending: s.db.Defined.clone()}
}

// locked says whether the open transaction still holds the fabric lock. The caller holds mu.
func (s *Switch) locked() (left time.Duration, ok bool) {
	if s.txn == nil {
		return 0, false
	}
	left = s.cfg.LockTimeout - s.cfg.Now().Sub(s.txn.opened)
	return left, left > 0
}
