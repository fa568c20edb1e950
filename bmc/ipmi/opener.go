package ipmi

import (
	"context"

	"rerack.dev/rerack/bmc"
	"rerack.dev/rerack/bmc/driver"
)

// Opener makes ipmi drivers for a bmc.Fleet. Its Config's limits hold for all BMCs; address and login come
// from the endpoint.
type Opener struct{ Config Config }

var _ bmc.Opener = Opener{}

func (o Opener) config(ep bmc.Endpoint) (Config, error) {
	cfg := o.Config
	addr, err := ep.HostPort("623")
	cfg.Address = addr
	return cfg, err
}

// Probe implements bmc.Opener. One lost datagram is no reason to choose another protocol, so it tries
// twice.
func (o Opener) Probe(ctx context.Context, ep bmc.Endpoint) error {
	cfg, err := o.config(ep)
	if err != nil {
		return err
	}
	cfg.Attempts = 2
	return Probe(ctx, cfg)
}

// Open implements bmc.Opener.
func (o Opener) Open(ctx context.Context, ep bmc.Endpoint, cred bmc.Credential) (driver.BMC, error) {
	cfg, err := o.config(ep)
	if err != nil {
		return nil, err
	}
	cfg.User, cfg.Password = cred.User, cred.Password
	d, err := Open(ctx, cfg)
	if err != nil {
		return nil, err // not a nil *Driver in an interface
	}
	return d, nil
}
