package amt

import (
	"context"
	"net"

	"rerack.dev/rerack/bmc"
	"rerack.dev/rerack/bmc/driver"
	"rerack.dev/rerack/internal/fault"
)

// Opener makes AMT drivers for a bmc.Fleet. Its Config's limits hold for all; address, trust and login
// come from the endpoint.
type Opener struct {
	Config Config
	// ProbePort is the one port that Probe asks at; default Port.
	ProbePort string
}

var _ bmc.Opener = Opener{}

func (o Opener) config(ep bmc.Endpoint) (Config, error) {
	cfg := o.Config
	addr, err := ep.HostPort(Port)
	if err != nil {
		return cfg, err
	}
	cfg.Address, cfg.CA, cfg.Fingerprint = addr, ep.CA, ep.Fingerprint
	return cfg, nil
}

// Probe implements bmc.Opener. An endpoint that names a port other than AMT's is not asked: a second TLS
// handshake would hold up a slow BMC that is being asked for Redfish there.
func (o Opener) Probe(ctx context.Context, ep bmc.Endpoint) error {
	cfg, err := o.config(ep)
	if err != nil {
		return err
	}
	want := o.ProbePort
	if want == "" {
		want = Port
	}
	if _, port, _ := net.SplitHostPort(cfg.Address); port != want {
		return fault.Newf(fault.Unsupported, "AMT is looked for on port %s only; declare protocol amt for another", want)
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
