package ovssim

import (
	"errors"
	"maps"
	"slices"

	"github.com/ovn-kubernetes/libovsdb/ovsdb"
)

// row is one row; rows are never changed in place.
type row map[string]datum

// tables maps table names to rows by UUID.
type tables map[string]map[string]row

// result is the outcome of one operation. libovsdb's type always carries a uuid and drops empty rows.
type result struct {
	Count   *int        `json:"count,omitempty"`
	Rows    []ovsdb.Row `json:"rows,omitzero"`
	Error   string      `json:"error,omitempty"`
	Details string      `json:"details,omitempty"`
}

// txn runs operations on a copy of the tables it touches.
//
// libovsdb has an in-memory server too. It is not used, because its `wait` skips columns whose wanted
// value is empty, which would make compare-and-set look weaker here than on a real switch.
type txn struct {
	schema  *ovsdb.DatabaseSchema
	base    tables
	written tables // copies of the tables with a write
}

func (t *txn) rows(table string) map[string]row {
	if w, ok := t.written[table]; ok {
		return w
	}
	return t.base[table]
}

// put replaces one row.
func (t *txn) put(table, uuid string, r row) {
	if t.written[table] == nil {
		t.written[table] = maps.Clone(t.base[table])
	}
	t.written[table][uuid] = r
}

// run executes the operations in order until one fails (RFC 7047 section 4.1.3). ok means commit.
func (t *txn) run(ops []ovsdb.Operation) (results []*result, ok bool) {
	results = make([]*result, len(ops))
	for i, op := range ops {
		r, err := t.do(op)
		if err != nil {
			var oe *opError
			if !errors.As(err, &oe) {
				oe = &opError{"internal error", err.Error()}
			}
			r = result{Error: oe.name, Details: oe.details}
		}
		results[i] = &r
		if err != nil {
			return results, false
		}
	}
	return results, true
}

func (t *txn) do(op ovsdb.Operation) (result, error) {
	switch op.Op {
	case ovsdb.OperationComment, ovsdb.OperationCommit:
		return result{}, nil // every commit here is durable
	case ovsdb.OperationSelect, ovsdb.OperationWait, ovsdb.OperationUpdate, ovsdb.OperationMutate:
	default:
		return result{}, &opError{"not supported", op.Op}
	}
	schema, ok := t.schema.Tables[op.Table]
	if !ok {
		return result{}, syntax("no table named %q", op.Table)
	}
	found, err := t.match(op.Table, &schema, op.Where)
	if err != nil {
		return result{}, err
	}
	switch op.Op {
	case ovsdb.OperationSelect:
		return t.project(op.Table, &schema, found, op.Columns)
	case ovsdb.OperationWait:
		return result{}, t.wait(op, &schema, found)
	case ovsdb.OperationUpdate:
		return t.update(op, &schema, found)
	}
	return t.mutate(op, &schema, found)
}

func column(schema *ovsdb.TableSchema, name string) (*ovsdb.ColumnSchema, error) {
	if col := schema.Column(name); col != nil {
		return col, nil
	}
	return nil, syntax("no column named %q", name)
}

// match finds the rows for which every condition holds (RFC 7047 section 5.1), in a fixed order.
func (t *txn) match(table string, schema *ovsdb.TableSchema, where []ovsdb.Condition) ([]string, error) {
	found := slices.Sorted(maps.Keys(t.rows(table)))
	for _, c := range where {
		var want datum
		if c.Column == "_uuid" {
			u, err := newAtom(&ovsdb.BaseType{Type: ovsdb.TypeUUID}, c.Value)
			if err != nil {
				return nil, err
			}
			want = datum{set: []any{u}}
		} else {
			col, err := column(schema, c.Column)
			if err != nil {
				return nil, err
			}
			if want, err = newDatum(col, c.Value); err != nil {
				return nil, err
			}
		}
		var keep []string
		for _, u := range found {
			have := datum{set: []any{ovsdb.UUID{GoUUID: u}}}
			if c.Column != "_uuid" {
				have = t.rows(table)[u][c.Column]
			}
			holds, err := evaluate(c.Function, have, want)
			if err != nil {
				return nil, err
			}
			if holds {
				keep = append(keep, u)
			}
		}
		found = keep
	}
	return found, nil
}

func evaluate(f ovsdb.ConditionFunction, have, want datum) (bool, error) {
	includes := func() bool {
		for k, v := range want.m {
			if have.m[k] != v {
				return false
			}
		}
		return !slices.ContainsFunc(want.set, func(a any) bool { return !have.has(a) })
	}
	switch f {
	case ovsdb.ConditionEqual:
		return have.equal(want), nil
	case ovsdb.ConditionNotEqual:
		return !have.equal(want), nil
	case ovsdb.ConditionIncludes:
		return includes(), nil
	}
	return false, &opError{"not supported", "condition " + string(f)}
}

func (t *txn) project(table string, schema *ovsdb.TableSchema, found, columns []string) (result, error) {
	if columns == nil {
		columns = append(slices.Sorted(maps.Keys(schema.Columns)), "_uuid")
	}
	out := result{Rows: []ovsdb.Row{}}
	for _, u := range found {
		r := ovsdb.Row{}
		for _, name := range columns {
			switch name {
			case "_uuid", "_version":
				r[name] = ovsdb.UUID{GoUUID: u}
				continue
			}
			col, err := column(schema, name)
			if err != nil {
				return out, err
			}
			r[name] = t.rows(table)[u][name].wire(col)
		}
		out.Rows = append(out.Rows, r)
	}
	return out, nil
}

// wait compares the rows found, cut to the named columns, with the given ones (RFC 7047 section 5.2.6).
// It never blocks: a condition that does not hold now is "timed out" at once.
func (t *txn) wait(op ovsdb.Operation, schema *ovsdb.TableSchema, found []string) error {
	given := make([]row, 0, len(op.Rows))
	for _, r := range op.Rows {
		g := row{}
		for _, name := range op.Columns {
			col, err := column(schema, name)
			if err != nil {
				return err
			}
			g[name] = defaultDatum(col)
			if v, ok := r[name]; ok {
				if g[name], err = newDatum(col, v); err != nil {
					return err
				}
			}
		}
		given = append(given, g)
	}
	same := len(given) == len(found) && !slices.ContainsFunc(found, func(u string) bool {
		have := t.rows(op.Table)[u]
		return !slices.ContainsFunc(given, func(g row) bool {
			for name, want := range g {
				if !have[name].equal(want) {
					return false
				}
			}
			return true
		})
	})
	if same != (op.Until == string(ovsdb.WaitConditionEqual)) {
		return &opError{"timed out", "\"wait\" timed out"}
	}
	return nil
}

func counted(found []string) result {
	n := len(found)
	return result{Count: &n}
}

func (t *txn) update(op ovsdb.Operation, schema *ovsdb.TableSchema, found []string) (result, error) {
	values := row{}
	for name, v := range op.Row {
		col, err := column(schema, name)
		if err != nil {
			return result{}, err
		}
		if !col.Mutable() || name == "_uuid" {
			return result{}, violation("cannot update immutable column %s", name)
		}
		if values[name], err = newDatum(col, v); err != nil {
			return result{}, err
		}
	}
	for _, u := range found {
		next := maps.Clone(t.rows(op.Table)[u])
		maps.Copy(next, values)
		t.put(op.Table, u, next)
	}
	return counted(found), nil
}

func (t *txn) mutate(op ovsdb.Operation, schema *ovsdb.TableSchema, found []string) (result, error) {
	for _, u := range found {
		next := maps.Clone(t.rows(op.Table)[u])
		for _, m := range op.Mutations {
			col, err := column(schema, m.Column)
			if err != nil {
				return result{}, err
			}
			if next[m.Column], err = mutated(col, next[m.Column], m); err != nil {
				return result{}, err
			}
		}
		t.put(op.Table, u, next)
	}
	return counted(found), nil
}

// mutated applies one mutation (RFC 7047 section 5.1, <mutation>).
func mutated(col *ovsdb.ColumnSchema, old datum, m ovsdb.Mutation) (datum, error) {
	switch {
	case m.Mutator == ovsdb.MutateOperationAdd && old.m == nil && len(old.set) == 1:
		have, isInt := old.set[0].(int)
		by, isNumber := m.Value.(float64)
		if !isInt || !isNumber {
			return old, syntax("+= of %v", m.Value)
		}
		return newDatum(col, float64(have)+by)
	case m.Mutator == ovsdb.MutateOperationInsert && old.m != nil:
		add, err := newDatum(col, m.Value)
		if err != nil {
			return old, err
		}
		next := datum{m: maps.Clone(old.m)}
		for k, v := range add.m {
			if _, there := next.m[k]; !there {
				next.m[k] = v
			}
		}
		return next, nil
	case m.Mutator == ovsdb.MutateOperationDelete && old.m != nil:
		// A set deletes keys whatever their values, a map only pairs that are equal.
		next := datum{m: maps.Clone(old.m)}
		switch v := m.Value.(type) {
		case ovsdb.OvsSet:
			for _, k := range v.GoSet {
				delete(next.m, k)
			}
		case ovsdb.OvsMap:
			maps.DeleteFunc(next.m, func(k, have any) bool { gone, ok := v.GoMap[k]; return ok && gone == have })
		default:
			delete(next.m, v)
		}
		return next, nil
	}
	return old, &opError{"not supported", "mutation " + string(m.Mutator) + " of this column"}
}
