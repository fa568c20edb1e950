package bmcsim

import (
	"fmt"
	"net/http"
	"strings"

	"rerack.dev/rerack/bmc/driver"
)

func id(path string) object { return object{"@odata.id": path} }

func (b *BMC) rootResource() object {
	p := b.cfg.Profile
	out := object{"@odata.id": "/redfish/v1/", "@odata.type": "#ServiceRoot.v1_15_0.ServiceRoot", "Id": "RootService", "Name": "Root Service",
		"RedfishVersion": "1.17.0", "UUID": b.identity().UUID, "Systems": id("/redfish/v1/Systems"), "Chassis": id("/redfish/v1/Chassis"),
		"SessionService": id("/redfish/v1/SessionService"), "Links": object{"Sessions": id("/redfish/v1/SessionService/Sessions")}}
	if p.Vendor != "" {
		out["Vendor"] = p.Vendor
	}
	if p.OEM != "" {
		out["Oem"] = object{p.OEM: object{}}
	}
	return out
}

// resource answers a GET behind the login.
func (b *BMC) resource(path string) reply {
	p := b.cfg.Profile
	sys, ch := p.systemPath(), p.chassisPath()
	inv := b.identity()
	adapters := ch + "/NetworkAdapters"
	functions := "NetworkDeviceFunctions"
	if p.Ports {
		functions = "Ports"
	}
	switch path {
	case "/redfish/v1/Systems":
		return b.collection(path, sys)
	case "/redfish/v1/Chassis":
		return b.collection(path, ch)
	case sys:
		return reply{status: 200, body: b.systemResource(), header: http.Header{"Etag": {b.etag()}}}
	case sys + "/ResetActionInfo":
		return reply{status: 200, body: object{"@odata.id": path, "Id": "ResetActionInfo", "Parameters": []object{
			{"Name": "ResetType", "Required": true, "AllowableValues": resetTypes()}}}}
	case sys + "/EthernetInterfaces":
		return b.collection(path, numbered(path, len(inv.NICs))...)
	case ch:
		return reply{status: 200, body: object{"@odata.id": ch, "Id": p.ChassisID, "ChassisType": "RackMount", "NetworkAdapters": id(adapters)}}
	case adapters:
		return b.collection(path, adapters+"/1")
	case adapters + "/1":
		return reply{status: 200, body: object{"@odata.id": path, "Id": "1", functions: id(path + "/" + functions)}}
	case adapters + "/1/" + functions:
		return b.collection(path, numbered(path, len(inv.NICs)+len(inv.HBAs))...)
	}
	if p.Settings != "" && path == sys+"/"+p.Settings {
		return reply{status: 200, body: object{"@odata.id": path, "Id": p.Settings, "Boot": bootResource(b.boot())}, header: http.Header{"Etag": {b.etag()}}}
	}
	var n int
	if _, err := fmt.Sscanf(strings.TrimPrefix(path, sys+"/EthernetInterfaces/"), "%d", &n); err == nil && n >= 1 && n <= len(inv.NICs) {
		nic := inv.NICs[n-1]
		return reply{status: 200, body: object{"@odata.id": path, "Id": nic.Name, "MACAddress": strings.ToUpper(nic.MAC.String()), "LinkStatus": "LinkUp"}}
	}
	if _, err := fmt.Sscanf(strings.TrimPrefix(path, adapters+"/1/"+functions+"/"), "%d", &n); err == nil && n >= 1 && n <= len(inv.NICs)+len(inv.HBAs) {
		return reply{status: 200, body: b.function(path, inv, n-1)}
	}
	if strings.Contains(path, "/page-") {
		return b.collection(path)
	}
	return fail(http.StatusNotFound, "no resource "+path)
}

func (b *BMC) function(path string, inv driver.Inventory, i int) object {
	if i < len(inv.NICs) {
		nic := inv.NICs[i]
		return object{"@odata.id": path, "Id": nic.Name, "NetDevFuncType": "Ethernet", "Ethernet": object{"PermanentMACAddress": nic.MAC.String()}}
	}
	hba := inv.HBAs[i-len(inv.NICs)]
	if b.cfg.Profile.Ports {
		return object{"@odata.id": path, "Id": hba.Name, "PortProtocol": "FC", "FibreChannel": object{"AssociatedWorldWideNames": []string{hba.WWPN}}}
	}
	return object{"@odata.id": path, "Id": hba.Name, "NetDevFuncType": "FibreChannel", "FibreChannel": object{"WWPN": strings.ToUpper(hba.WWPN)}}
}

func numbered(path string, n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprintf("%s/%d", path, i+1)
	}
	return out
}

func (b *BMC) collection(path string, members ...string) reply {
	list := make([]object, len(members))
	for i, m := range members {
		list[i] = id(m)
	}
	out := object{"@odata.id": path, "Members": list, "Members@odata.count": len(list)}
	if b.Faults().LoopLinks {
		b.count("page")
		out["Members@odata.nextLink"] = fmt.Sprintf("%s/page-%d", strings.SplitN(path, "/page-", 2)[0], b.Count("page"))
	}
	return reply{status: 200, body: out}
}

func resetTypes() []string {
	return []string{"On", "ForceOff", "GracefulShutdown", "ForceRestart", "PowerCycle"}
}

func (b *BMC) systemResource() object {
	p, inv := b.cfg.Profile, b.identity()
	sys := p.systemPath()
	out := object{"@odata.id": sys, "@odata.type": "#ComputerSystem.v1_20_0.ComputerSystem", "Id": p.SystemID, "Name": b.cfg.Name,
		"UUID": inv.UUID, "Manufacturer": or(inv.Manufacturer, p.Manufacturer), "Model": or(inv.Model, p.Model),
		"SerialNumber": inv.Serial, "PowerState": redfishState(b.power()),
		"EthernetInterfaces": id(sys + "/EthernetInterfaces"), "Links": object{"Chassis": []object{id(p.chassisPath())}},
		"Status": object{"Health": "OK", "State": "Enabled"}}
	if p.SKUSerial {
		out["SKU"], out["SerialNumber"] = inv.Serial, "CN-BOARD-"+inv.Serial
	}
	if !p.NoRestore {
		out["PowerRestorePolicy"] = b.cfg.Backend.PowerRestore()
	}
	reset := object{"target": sys + "/Actions/ComputerSystem.Reset"}
	if p.ActionInfo {
		reset["@Redfish.ActionInfo"] = sys + "/ResetActionInfo"
	} else {
		reset["ResetType@Redfish.AllowableValues"] = resetTypes()
	}
	out["Actions"] = object{"#ComputerSystem.Reset": reset}
	if p.Settings != "" {
		out["@Redfish.Settings"] = object{"@odata.type": "#Settings.v1_3_5.Settings", "SettingsObject": id(sys + "/" + p.Settings)}
		out["Boot"] = bootResource(driver.BootOverride{Device: driver.BootDefault})
	} else {
		out["Boot"] = bootResource(b.boot())
	}
	return out
}

func redfishState(s driver.PowerState) string {
	switch s {
	case driver.PowerOn:
		return "On"
	case driver.PowerOff:
		return "Off"
	}
	return "PoweringOff"
}

func bootResource(o driver.BootOverride) object {
	out := object{"BootSourceOverrideEnabled": "Disabled", "BootSourceOverrideTarget": "None", "BootSourceOverrideMode": "UEFI",
		"BootSourceOverrideTarget@Redfish.AllowableValues": []string{"None", "Pxe", "UefiHttp", "Hdd", "Cd", "BiosSetup"}}
	if o.Mode == driver.FirmwareBIOS {
		out["BootSourceOverrideMode"] = "Legacy"
	}
	if o.Device != driver.BootDefault && o.Device != "" {
		out["BootSourceOverrideTarget"] = targetOf(o.Device)
		out["BootSourceOverrideEnabled"] = "Continuous"
		if o.Once {
			out["BootSourceOverrideEnabled"] = "Once"
		}
	}
	return out
}

func or(a, b string) string {
	if a != "" {
		return a
	}
	return b
}
