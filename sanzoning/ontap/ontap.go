// Package ontap drives the LUN masking of a NetApp ONTAP array over its REST API (ONTAP 9.9.1 and
// later: "ONTAP REST API reference", groups SAN and Storage), for Fibre Channel.
//
// Every volume has one igroup of ours, rr_<name>, that stays mapped to its LUN; who may reach the LUN
// is who is in the igroup. An igroup without initiators lets nobody in. The epoch stands in the
// igroup's comment, so it survives this process and restarts of the array.
package ontap

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"sort"
	"strings"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/sanzoning/driver"
)

// Config of one array. The password is asked for at every request and not kept.
type Config struct {
	Name     string // for messages
	URL      string // https://host[:port] of the cluster's or SVM's management LIF
	TLS      *tls.Config
	Login    func(ctx context.Context) (user, password string, err error)
	OSType   string // of igroups we create; default linux
	MaxBytes int64  // of one answer; default 8 MiB
	Logger   *slog.Logger
}

// Validate fills in defaults and names the first key that is wrong.
func (c *Config) Validate() error {
	u, err := url.Parse(c.URL)
	switch {
	case err != nil || u.Scheme != "https" || u.Host == "" || strings.Trim(u.Path, "/") != "":
		return fault.Newf(fault.Invalid, "ontap config: url: %q is not https://host[:port]", c.URL)
	case c.Login == nil:
		return fault.New(fault.Invalid, "ontap config: login: missing")
	case c.TLS != nil && c.TLS.InsecureSkipVerify && c.TLS.VerifyConnection == nil && c.TLS.VerifyPeerCertificate == nil:
		return fault.New(fault.Invalid, "ontap config: tls: verifies nothing")
	}
	if c.OSType == "" {
		c.OSType = "linux"
	}
	if c.MaxBytes == 0 {
		c.MaxBytes = 8 << 20
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

// Array is one ONTAP system. Reads may run beside each other and beside one Apply.
type Array struct {
	cfg Config
	rest
}

var _ driver.Array = (*Array)(nil)

// New checks the configuration. The first call connects.
func New(c Config) (*Array, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	return &Array{cfg: c, rest: newREST(c)}, nil
}

// Close lets go of connections; the API is without sessions.
func (a *Array) Close() error {
	a.http.CloseIdleConnections()
	return nil
}

type named struct {
	Name string `json:"name"`
}

// igroup is an initiator group (resource /api/protocols/san/igroups).
type igroup struct {
	UUID       string  `json:"uuid,omitempty"`
	SVM        named   `json:"svm"`
	Name       string  `json:"name"`
	Protocol   string  `json:"protocol,omitempty"`
	OSType     string  `json:"os_type,omitempty"`
	Comment    string  `json:"comment,omitempty"`
	Initiators []named `json:"initiators,omitempty"`
}

// lunMap is a mapping of a LUN to an igroup (resource /api/protocols/san/lun-maps).
type lunMap struct {
	SVM    named `json:"svm"`
	LUN    named `json:"lun"`
	Igroup named `json:"igroup"`
}

type lun struct {
	Name string `json:"name"`
	SVM  named  `json:"svm"`
}

// view is the masking of the array as read at one moment.
type view struct {
	luns   map[string]lun
	groups map[string]igroup   // by name
	maps   map[string][]string // LUN -> igroup names
}

func (a *Array) read(ctx context.Context) (view, error) {
	v := view{luns: map[string]lun{}, groups: map[string]igroup{}, maps: map[string][]string{}}
	luns, err := list[lun](ctx, a.rest, "/api/storage/luns?fields=name,svm.name")
	if err != nil {
		return v, err
	}
	groups, err := list[igroup](ctx, a.rest, "/api/protocols/san/igroups?fields=name,svm.name,protocol,comment,initiators.name")
	if err != nil {
		return v, err
	}
	maps, err := list[lunMap](ctx, a.rest, "/api/protocols/san/lun-maps?fields=lun.name,igroup.name,svm.name")
	if err != nil {
		return v, err
	}
	for _, l := range luns {
		v.luns[l.Name] = l
	}
	for _, g := range groups {
		v.groups[g.Name] = g
	}
	for _, m := range maps {
		v.maps[m.LUN.Name] = append(v.maps[m.LUN.Name], m.Igroup.Name)
	}
	return v, nil
}

// Masks implements driver.Array. A LUN that is mapped to an igroup of somebody else has that group's
// initiators in it too.
func (a *Array) Masks(ctx context.Context) ([]driver.Mask, error) {
	v, err := a.read(ctx)
	if err != nil {
		return nil, err
	}
	var out []driver.Mask
	for name := range v.luns {
		out = append(out, v.mask(name))
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Volume < out[j].Volume })
	return out, nil
}

func (v view) mask(volume string) driver.Mask {
	m := driver.Mask{Volume: volume, Initiators: []string{}}
	for _, name := range v.maps[volume] {
		g := v.groups[name]
		for _, i := range g.Initiators {
			m.Initiators = append(m.Initiators, strings.ToLower(i.Name))
		}
		if name == GroupName(volume) {
			m.Epoch = epochOf(g.Comment)
		}
	}
	sort.Strings(m.Initiators)
	m.Initiators = slices.Compact(m.Initiators)
	return m
}

// mapped lists the LUNs that an igroup reaches.
func (v view) mapped(group string) []string {
	var out []string
	for l, names := range v.maps {
		if slices.Contains(names, group) {
			out = append(out, l)
		}
	}
	slices.Sort(out)
	return out
}

// Apply implements driver.Array. All refusals come before the first change; everybody who loses a
// volume has lost it, on all volumes, before anybody gains one.
func (a *Array) Apply(ctx context.Context, c driver.MaskChange) (driver.MaskResult, error) {
	v, err := a.read(ctx)
	if err != nil {
		return driver.MaskResult{}, err
	}
	var res driver.MaskResult
	var changes []driver.Mask
	for _, m := range c.Masks {
		if err := a.refuse(v, m); err != nil {
			return res, err
		}
		now := v.mask(m.Volume)
		if !slices.Contains(v.maps[m.Volume], GroupName(m.Volume)) || now.Epoch != m.Epoch || !sameMembers(now.Initiators, m.Initiators) {
			changes = append(changes, m)
			res.Changed = append(res.Changed, m.Volume)
		}
	}
	for _, m := range changes {
		if err := a.revoke(ctx, v, m, c.Owner); err != nil {
			return res, err
		}
	}
	if len(changes) > 0 {
		if v, err = a.revoked(ctx, changes); err != nil {
			return res, err
		}
	}
	for _, m := range changes {
		if err := a.grant(ctx, v, m); err != nil {
			return res, err
		}
	}
	after, err := a.read(ctx)
	if err != nil {
		return res, err
	}
	for _, m := range c.Masks {
		got := after.mask(m.Volume)
		res.After = append(res.After, got)
		if got.Epoch != m.Epoch || !sameMembers(got.Initiators, m.Initiators) {
			return res, a.fail(fault.Unverified, m.Volume, fmt.Sprintf("reads back epoch %d and %v", got.Epoch, got.Initiators), "another administrator may be at work")
		}
	}
	return res, nil
}

// revoked reads back that nobody is left who loses a volume, before anybody gains one: an array that
// acknowledged a removal and did not make it must not get a second holder. A newer epoch that came in
// since the marks were written stops the change here.
func (a *Array) revoked(ctx context.Context, changes []driver.Mask) (view, error) {
	v, err := a.read(ctx)
	if err != nil {
		return v, err
	}
	for _, m := range changes {
		if err := a.refuse(v, m); err != nil {
			return v, err
		}
		g := v.groups[GroupName(m.Volume)]
		for _, i := range g.Initiators {
			if !slices.Contains(m.Initiators, strings.ToLower(i.Name)) {
				return v, a.fail(fault.Unverified, m.Volume, i.Name+" is still in igroup "+g.Name, "the volume is not fenced: power off the old holder, or unmap the LUN by hand")
			}
		}
		if now := epochOf(g.Comment); now != m.Epoch {
			return v, a.fail(fault.Unverified, m.Volume, fmt.Sprintf("reads back epoch %d, not %d", now, m.Epoch), "another administrator may be at work")
		}
	}
	return v, nil
}

// refuse says what forbids a change: an unknown LUN, a newer epoch, or a map or a group that is not
// ours, which would leave a way in that we do not control (hazard H27).
func (a *Array) refuse(v view, m driver.Mask) error {
	if _, ok := v.luns[m.Volume]; !ok {
		return a.fail(fault.NotFound, m.Volume, "the array has no such LUN", "check arrayRef of the volume")
	}
	for _, g := range v.maps[m.Volume] {
		if g != GroupName(m.Volume) {
			return a.fail(fault.Unsafe, m.Volume, "it is mapped to igroup "+g+" too, which is not ours", "unmap it there, or give the volume to nobody")
		}
	}
	own, exists := v.groups[GroupName(m.Volume)]
	now := epochOf(own.Comment)
	switch {
	case exists && (now == 0 || own.Protocol != "fcp"):
		return a.fail(fault.Unsafe, m.Volume, fmt.Sprintf("igroup %s of protocol %q with comment %.60q is not one that we made", own.Name, own.Protocol, own.Comment), "rename or remove it there")
	case exists && slices.ContainsFunc(v.mapped(own.Name), func(l string) bool { return l != m.Volume }):
		return a.fail(fault.Unsafe, m.Volume, fmt.Sprintf("igroup %s is mapped to %v", own.Name, v.mapped(own.Name)), "unmap the other LUNs there")
	}
	if now > m.Epoch {
		return a.fail(fault.Stale, m.Volume, fmt.Sprintf("the array has seen epoch %d, this is %d", now, m.Epoch), "a newer run has taken over")
	}
	return nil
}

// revoke writes the new epoch first, so that an older change is refused from here on, and then takes
// out who may not reach the volume any more. Removing an initiator ends its access at once.
func (a *Array) revoke(ctx context.Context, v view, m driver.Mask, owner string) error {
	name := GroupName(m.Volume)
	g, exists := v.groups[name]
	comment := Comment(m.Epoch, owner)
	if !exists {
		g = igroup{SVM: v.luns[m.Volume].SVM, Name: name, Protocol: "fcp", OSType: a.cfg.OSType, Comment: comment}
		return a.send(ctx, "POST", "/api/protocols/san/igroups", g)
	}
	if g.Comment != comment {
		if err := a.send(ctx, "PATCH", "/api/protocols/san/igroups/"+url.PathEscape(g.UUID), map[string]string{"comment": comment}); err != nil {
			return err
		}
	}
	for _, i := range g.Initiators {
		if slices.Contains(m.Initiators, strings.ToLower(i.Name)) {
			continue
		}
		path := "/api/protocols/san/igroups/" + url.PathEscape(g.UUID) + "/initiators/" + url.PathEscape(i.Name) + "?allow_delete_while_mapped=true"
		if err := a.send(ctx, "DELETE", path, nil); err != nil {
			return err
		}
	}
	return nil
}

func (a *Array) grant(ctx context.Context, v view, m driver.Mask) error {
	name := GroupName(m.Volume)
	g, exists := v.groups[name]
	if !exists {
		return a.fail(fault.Conflict, m.Volume, "igroup "+name+" vanished meanwhile", "try again")
	}
	var missing []named
	for _, w := range m.Initiators {
		if !slices.ContainsFunc(g.Initiators, func(i named) bool { return strings.EqualFold(i.Name, w) }) {
			missing = append(missing, named{w})
		}
	}
	if len(missing) > 0 {
		body := map[string][]named{"records": missing}
		if err := a.send(ctx, "POST", "/api/protocols/san/igroups/"+url.PathEscape(g.UUID)+"/initiators", body); err != nil {
			return err
		}
	}
	if slices.Contains(v.maps[m.Volume], name) {
		return nil
	}
	return a.send(ctx, "POST", "/api/protocols/san/lun-maps", lunMap{SVM: v.luns[m.Volume].SVM, LUN: named{m.Volume}, Igroup: named{name}})
}

// Sessions implements driver.Array: fabric logins, once for every volume whose mask names the port.
func (a *Array) Sessions(ctx context.Context) ([]driver.Session, error) {
	type login struct {
		Initiator struct {
			WWPN string `json:"wwpn"`
		} `json:"initiator"`
	}
	logins, err := list[login](ctx, a.rest, "/api/network/fc/logins?fields=initiator.wwpn")
	if err != nil {
		return nil, err
	}
	v, err := a.read(ctx)
	if err != nil {
		return nil, err
	}
	var out []driver.Session
	for volume := range v.maps {
		m := v.mask(volume)
		for _, l := range logins {
			if w := strings.ToLower(l.Initiator.WWPN); slices.Contains(m.Initiators, w) {
				out = append(out, driver.Session{Volume: volume, Initiator: w})
			}
		}
	}
	sort.Slice(out, func(i, j int) bool {
		return out[i].Volume+out[i].Initiator < out[j].Volume+out[j].Initiator
	})
	return out, nil
}

func (a *Array) fail(k fault.Kind, volume, evidence, next string) error {
	return &fault.Error{Kind: k, Where: "array " + a.cfg.Name + ", LUN " + volume, What: "mask", Evidence: evidence, Next: next}
}
