package bmclib

import (
	"context"

	"github.com/bmc-toolbox/bmclib/v2/providers"
	"github.com/jacobweinstock/registrar"
	"rerack.dev/rerack/bmc"
	"rerack.dev/rerack/bmc/driver"
	"rerack.dev/rerack/internal/fault"
)

// Provider is a driver of ours as a bmclib provider: it goes into a bmclib registry where its ipmitool
// provider would.
type Provider struct {
	Opener     bmc.Opener
	Endpoint   bmc.Endpoint
	Credential bmc.Credential

	drv  driver.BMC
	last error // of the last call, with its kind; bmclib passes on text
}

// Name identifies the provider.
func (p *Provider) Name() string { return "rerack-ipmi" }

// Features lists what it does, in bmclib's words.
func (p *Provider) Features() registrar.Features {
	return registrar.Features{providers.FeaturePowerState, providers.FeaturePowerSet, providers.FeatureBootDeviceSet}
}

func (p *Provider) note(err error) error {
	p.last = err
	return err
}

// Open logs in.
func (p *Provider) Open(ctx context.Context) error {
	drv, err := p.Opener.Open(ctx, p.Endpoint, p.Credential)
	if err == nil {
		p.drv = drv
	}
	return p.note(err)
}

// Close logs out.
func (p *Provider) Close(ctx context.Context) error { return p.note(p.drv.Close(ctx)) }

// PowerStateGet returns on, off or changing.
func (p *Provider) PowerStateGet(ctx context.Context) (string, error) {
	r, err := p.drv.Power(ctx)
	return string(r.State), p.note(err)
}

// PowerSet takes on, off and soft. Cycle and reset are gestures and are refused.
func (p *Provider) PowerSet(ctx context.Context, state string) (bool, error) {
	t, ok := map[string]driver.Target{"on": driver.On, "off": driver.Off, "soft": driver.ShutDown}[state]
	if !ok {
		return false, p.note(fault.Newf(fault.Unsupported, "power state %q", state))
	}
	err := p.note(p.drv.SetPower(ctx, t))
	return err == nil, err
}

// BootDeviceSet sets the boot override for pxe, disk and none.
func (p *Provider) BootDeviceSet(ctx context.Context, device string, persistent, efi bool) (bool, error) {
	d, ok := map[string]driver.BootDevice{"pxe": driver.BootPXE, "disk": driver.BootDisk, "none": driver.BootDefault}[device]
	if !ok {
		return false, p.note(fault.Newf(fault.Unsupported, "boot device %q", device))
	}
	b := driver.BootOverride{Device: d, Once: !persistent, Mode: driver.FirmwareBIOS}
	if efi {
		b.Mode = driver.FirmwareUEFI
	}
	err := p.note(p.drv.SetBoot(ctx, b))
	return err == nil, err
}
