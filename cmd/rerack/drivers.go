package main

import (
	"context"
	"log/slog"
	"time"

	"rerack.dev/rerack/bmc"
	"rerack.dev/rerack/bmc/ipmi"
	"rerack.dev/rerack/bmc/redfish"
	"rerack.dev/rerack/fabric"
	fabricdriver "rerack.dev/rerack/fabric/driver"
	"rerack.dev/rerack/fabric/ovs"
	"rerack.dev/rerack/orchestrator/secrets"
	"rerack.dev/rerack/orchestrator/topology"
	san "rerack.dev/rerack/sanzoning/driver"
	"rerack.dev/rerack/workflows/gateway"
)

// deviceTimeout bounds one call at a switch, fabric or array. It is below every lock delay (rule F5).
const deviceTimeout = 10 * time.Second

// drivers lists every driver there is; nothing registers itself.
func drivers(creds *secrets.File, deviceCA string, log *slog.Logger) (gateway.Config, error) {
	fleet, err := bmc.NewFleet(bmc.Config{
		Openers:     map[bmc.Protocol]bmc.Opener{bmc.Redfish: redfish.Opener{}, bmc.IPMI: ipmi.Opener{}},
		Credentials: func(ctx context.Context, ref string) (bmc.Credential, error) { return creds.Resolve(ctx, ref) },
		Logger:      log,
		CallTimeout: 10 * time.Second,
		PollTimeout: 3 * time.Second,
	})
	if err != nil {
		return gateway.Config{}, err
	}
	return gateway.Config{
		Fleet: fleet,
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
		Fabrics: map[string]func(topology.Fabric) (san.Fabric, error){},
		Arrays:  map[string]func(topology.Array) (san.Array, error){},
	}, nil
}
