package amt

import (
	"context"
	"encoding/hex"
	"fmt"
	"net"
	"slices"

	"rerack.dev/rerack/bmc/driver"
	"rerack.dev/rerack/internal/fault"
)

// Identity implements driver.Identifier: the UUID of CIM_ComputerSystemPackage and what CIM_Chassis says.
func (d *Driver) Identity(ctx context.Context) (driver.Inventory, error) {
	d.c.requests = 0
	return d.identity(ctx)
}

func (d *Driver) identity(ctx context.Context) (driver.Inventory, error) {
	var inv driver.Inventory
	pkg, err := d.c.call(ctx, get("CIM_ComputerSystemPackage"), "CIM_ComputerSystemPackage")
	if err != nil {
		return inv, err
	}
	if inv.UUID, err = platformUUID(pkg.value("PlatformGUID")); err != nil {
		return inv, err
	}
	chassis, err := d.c.call(ctx, get("CIM_Chassis"), "CIM_Chassis")
	if err != nil {
		return inv, err
	}
	inv.Manufacturer, inv.Model, inv.Serial = chassis.value("Manufacturer"), chassis.value("Model"), chassis.value("SerialNumber")
	return inv, nil
}

// platformUUID reads 32 hex digits, which are the 16 bytes of SMBIOS type 1 as they stand in memory: the
// first three fields are little-endian (SMBIOS 3.7 section 7.2.1). A machine without a UUID has all bytes
// 0 or all 255, which is no identity.
func platformUUID(s string) (string, error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != 16 {
		return "", &fault.Error{Kind: fault.Internal, What: "CIM_ComputerSystemPackage", Evidence: fmt.Sprintf("platform GUID %q is not 32 hex digits", clip(s))}
	}
	if same := func(x byte) bool { return x == b[0] && (x == 0 || x == 0xff) }; !slices.ContainsFunc(b, func(x byte) bool { return !same(x) }) {
		return "", nil
	}
	slices.Reverse(b[0:4])
	slices.Reverse(b[4:6])
	slices.Reverse(b[6:8])
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:16]), nil
}

// Inventory implements driver.BMC. AMT knows the network ports that it shares with the machine, one
// wired and perhaps one wireless, and no others.
func (d *Driver) Inventory(ctx context.Context) (driver.Inventory, error) {
	d.c.requests = 0
	inv, err := d.identity(ctx)
	if err != nil {
		return inv, err
	}
	for port := range 2 {
		const class = "AMT_EthernetPortSettings"
		// "Intel(r) AMT Ethernet Port Settings 0" is the wired port, 1 the wireless one.
		name := fmt.Sprintf("Intel(r) AMT Ethernet Port Settings %d", port)
		s, err := d.c.call(ctx, get(class, selector{"InstanceID", name}), class)
		if fault.Is(err, fault.NotFound) {
			continue
		}
		if err != nil {
			return inv, err
		}
		mac, err := net.ParseMAC(s.value("MACAddress")) // written 00-be-43-d8-22-a4
		if err != nil || len(mac) != 6 || !slices.ContainsFunc(mac, func(x byte) bool { return x != 0 }) {
			continue // the port is not fitted
		}
		inv.NICs = append(inv.NICs, driver.NIC{Name: fmt.Sprintf("amt%d", port), MAC: mac})
	}
	return inv, nil
}
