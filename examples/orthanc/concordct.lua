-- Sends every CT series that has become stable to the service, and nothing that the service has made.
-- orthanc.json names the service "concordct" in DicomModalities.

local SERVICE = 'concordct'

function OnStableSeries(seriesId, tags, metadata)
  local modality = tags['Modality'] or ''
  local description = tags['SeriesDescription'] or ''
  -- Derived series carry "[concordct" in their description: without this the two would pass one series to and fro.
  if modality == 'CT' and string.find(description, '[concordct', 1, true) == nil then
    -- A job of its own: the whole series over one association, tried again by Orthanc's jobs engine.
    RestApiPost('/modalities/' .. SERVICE .. '/store', DumpJson({Resources = {seriesId}, Synchronous = false}), true)
  end
end
