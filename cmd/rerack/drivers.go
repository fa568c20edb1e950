package main

import (
	"context"
	"log/slog"
	"strings"
	"time"

	"rerack.dev/rerack/bmc"
	"rerack.dev/rerack/bmc/amt"
	"rerack.dev/rerack/bmc/bmclib"
	"rerack.dev/rerack/bmc/ipmi"
	"rerack.dev/rerack/bmc/redfish"
	"rerack.dev/rerack/fabric"
	fabricdriver "rerack.dev/rerack/fabric/driver"
	"rerack.dev/rerack/fabric/ovs"
	"rerack.dev/rerack/internal/pki"
	"rerack.dev/rerack/orchestrator/secrets"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/sanzoning/brocade"
	san "rerack.dev/rerack/sanzoning/driver"
	"rerack.dev/rerack/sanzoning/masking"
	"rerack.dev/rerack/sanzoning/ontap"
	"rerack.dev/rerack/sanzoning/tgt"
	"rerack.dev/rerack/sanzoning/zoning"
	"rerack.dev/rerack/workflows/gateway"
)

// deviceTimeout bounds one call at a switch, fabric or array. It is below every lock delay (rule F5).
const deviceTimeout = 10 * time.Second

// drivers lists every driver there is; nothing registers itself.
func drivers(creds *secrets.File, deviceCA string, log *slog.Logger) (gateway.Config, error) {
	fleet, err := bmc.NewFleet(bmc.Config{
		Openers:     map[bmc.Protocol]bmc.Opener{bmc.Redfish: redfish.Opener{}, bmc.IPMI: ipmi.Opener{}, bmc.AMT: amt.Opener{}, bmc.BMCLib: bmclib.Opener{}},
		Credentials: func(ctx context.Context, ref string) (bmc.Credential, error) { return creds.Resolve(ctx, ref) },
		Logger:      log,
		CallTimeout: 10 * time.Second,
		PollTimeout: 3 * time.Second,
	})
	if err != nil {
		return gateway.Config{}, err
	}
	return gateway.Config{
		Fleet:       fleet,
		Hypervisors: map[topology.HypervisorDriver]gateway.OpenHypervisor{topology.Libvirt: openLibvirt(deviceCA, log), topology.VSphere: openVSphere(creds, deviceCA, log)},
		CHAP:        func(ctx context.Context, name string) (string, string, error) { return login(creds, name)(ctx) },
		Switches: map[string]func(topology.Switch) (fabricdriver.Switch, error){
			"ovs": func(s topology.Switch) (fabricdriver.Switch, error) {
				bridge := s.Spec.Bridge
				if bridge == "" {
					bridge = "br0"
				}
				d, err := ovs.New(ovs.Config{Endpoint: s.Spec.Address, Bridge: bridge, Logger: log})
				if err != nil {
					return nil, err
				}
				return fabric.New(d, fabric.Config{Name: s.Meta.Name, Protected: s.Spec.Protected, CallTimeout: deviceTimeout, Logger: log})
			},
		},
		Fabrics: map[string]func(topology.Fabric) (san.Fabric, error){
			"brocade": func(f topology.Fabric) (san.Fabric, error) {
				trust, err := pki.Trust(deviceCA, f.Spec.Fingerprint)
				if err != nil {
					return nil, err
				}
				d, err := brocade.New(brocade.Config{URL: f.Spec.Address, VirtualFabric: f.Spec.VirtualID, TLS: trust, Login: login(creds, f.Spec.Credentials), Logger: log})
				if err != nil {
					return nil, err
				}
				return zoning.New(d, zoning.Config{Name: f.Meta.Name, Logger: log})
			},
		},
		Arrays: map[string]func(topology.Array) (san.Array, error){
			"tgt": func(a topology.Array) (san.Array, error) {
				d, err := tgt.New(tgt.Config{Socket: strings.TrimPrefix(a.Spec.Address, "unix:")})
				if err != nil {
					return nil, err
				}
				return masking.New(d, masking.Config{Array: a.Meta.Name, Logger: log})
			},
			"ontap": func(a topology.Array) (san.Array, error) {
				trust, err := pki.Trust(deviceCA, a.Spec.Fingerprint)
				if err != nil {
					return nil, err
				}
				d, err := ontap.New(ontap.Config{Name: a.Meta.Name, URL: a.Spec.Address, TLS: trust, Login: login(creds, a.Spec.Credentials), Logger: log})
				if err != nil {
					return nil, err
				}
				return masking.New(d, masking.Config{Array: a.Meta.Name, Logger: log})
			},
		},
	}, nil
}

// login resolves a secret each time a device asks for it.
func login(creds *secrets.File, ref string) func(context.Context) (user, password string, err error) {
	return func(ctx context.Context) (string, string, error) {
		c, err := creds.Resolve(ctx, ref)
		return c.User, c.Password.Reveal(), err
	}
}
