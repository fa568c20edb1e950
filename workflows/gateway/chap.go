package gateway

import (
	"context"
	"time"

	"rerack.dev/rerack/hypervisor"
	"rerack.dev/rerack/hypervisor/driver"
	"rerack.dev/rerack/internal/fault"
)

// A host that starts its machines all at once, each with a login to its array, takes its time.
const (
	hostReads   = 20 * time.Second
	hostChanges = 50 * time.Second
)

// told is a host whose driver is told the secrets that definitions name.
func (g *Gateway) told(d driver.Host, machine string) (driver.Host, error) {
	return hypervisor.New(&resolving{d, g.cfg.CHAP}, hypervisor.Config{Machine: machine, ReadTimeout: hostReads, ChangeTimeout: hostChanges})
}

// resolving puts the values of secrets into definitions just before the driver gets them, so that no
// workflow, log or comparison ever sees one.
type resolving struct {
	driver.Host
	chap func(ctx context.Context, name string) (user, secret string, err error)
}

// Define implements driver.Host.
func (r *resolving) Define(ctx context.Context, s driver.Spec) error {
	s = s.Clone()
	for _, d := range s.Disks {
		if d.ISCSI == nil || d.ISCSI.CHAP == nil {
			continue
		}
		c := d.ISCSI.CHAP
		if r.chap == nil {
			return &fault.Error{Kind: fault.Unsupported, Where: "volume " + d.Volume, What: "resolve secret " + c.Name}
		}
		user, secret, err := r.chap(ctx, c.Name)
		if err != nil {
			return fault.Wrap(err, "resolve the CHAP secret", "volume "+d.Volume)
		}
		c.User, c.Secret = user, driver.Secret(secret)
	}
	return r.Host.Define(ctx, s)
}
