package redfish

import (
	"context"

	"rerack.dev/rerack/bmc"
	"rerack.dev/rerack/bmc/driver"
)

// Opener makes redfish drivers for a bmc.Fleet. Its Config's limits hold for all BMCs; address, trust,
// login and identity come from the endpoint.
type Opener struct{ Config Config }

var _ bmc.Opener = Opener{}

func (o Opener) config(ep bmc.Endpoint) (Config, error) {
	cfg := o.Config
	addr, err := ep.HostPort("443")
	if err != nil {
		return cfg, err
	}
	cfg.Address, cfg.CA, cfg.Fingerprint = addr, ep.CA, ep.Fingerprint
	cfg.UUID, cfg.Serial = ep.ExpectUUID, ep.ExpectSerial
	return cfg, nil
}

// Probe implements bmc.Opener.
func (o Opener) Probe(ctx context.Context, ep bmc.Endpoint) error {
	cfg, err := o.config(ep)
	if err != nil {
		return err
	}
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
